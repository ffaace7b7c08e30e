"""What an annotation is: which bridge, asked what, about which shards. Kept as `annotation.json`, so that a rerun goes
on with the same one or is refused.

Whatever changes a byte of the output is in here; whatever does not (workers, device, executor) is not.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any, Literal

from pydantic import Field

from layerbridge.config import FrozenConfig, build_config
from layerbridge.errors import ConfigError
from layerbridge.model.batches import BATCH_TOKENS

FORMAT: Literal["layerbridge-annotation"] = "layerbridge-annotation"
VERSION: Literal[1] = 1
FILE = "annotation.json"

SHOWN = 3
"""Shards that a refusal names."""
SHOWN_CHARACTERS = 120
"""Of a value in a refusal."""


class Options(FrozenConfig):
    """What is asked of each row, and what is written of it."""

    method: Literal["classify", "generate"] = "classify"
    labels: tuple[str, ...] | None = None
    """To choose from; None when answers are written."""
    probabilities: bool = False
    """Of every label, beside the best one's."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """LLM tokens of an answer; None when labels are chosen."""
    stop: tuple[str, ...] = ()
    prompt: str | None = None
    """What the LLM reads after the soft tokens; None: the bridge's own."""
    template: str | None = None
    """What is put around a row's columns; None: the encoder reads the one column as it is."""
    columns: dict[str, str] = Field(default_factory=lambda: {"text": "text"})
    """Field of the template -> column of the corpus."""
    id_column: str = "id"
    """What rejects are named by, where a row has it."""
    keep: tuple[str, ...] | None = None
    """Columns of the input that the output has; None: all."""
    prefix: str = ""
    """Of the names of the columns that are added."""
    too_long: Literal["reject", "cut"] = "reject"
    """What happens to a text with more encoder tokens than `max_source_tokens`."""
    max_source_tokens: int = Field(default=512, ge=1)
    batch_tokens: int = Field(default=BATCH_TOKENS, ge=1)
    """Tokens of a pass, padding included. It is part of the plan because probabilities depend on it by rounding."""

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the columns that a row gains, in order."""
        if self.method == "generate":
            names: tuple[str, ...] = ("answer",)
        else:
            names = ("label", "probability", *(["probabilities"] if self.probabilities else []))
        return tuple(self.prefix + name for name in names)

    def clashing(self, columns: Any) -> list[str]:
        """Return those of a row's columns that stand where a column is to be added."""
        kept = columns if self.keep is None else [name for name in columns if name in self.keep]
        return sorted(set(self.added) & set(kept))


class Shard(FrozenConfig):
    """One file of the corpus."""

    name: str
    """Relative to the corpus; the output has the same."""
    size: int
    """Bytes, as they lie there."""


class Plan(FrozenConfig):
    """One annotation. The number of a shard in `shards` is its rank, for good."""

    format: Literal["layerbridge-annotation"] = FORMAT
    version: Literal[1] = VERSION
    run: str
    """The last part of the run's name, for people."""
    bridge: str
    """The bridge's fingerprint."""
    options: Options
    shards: tuple[Shard, ...]


def to_json(plan: Plan) -> str:
    """Return a plan as the text of its file."""
    return json.dumps(plan.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, where: str) -> Plan:
    """Return the plan that a file holds.

    Raises:
        ConfigError: it holds none, or one of another version.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error}). Take another OUTPUT, or mend it from a backup.") from None
    found = (data.get("format"), data.get("version")) if isinstance(data, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ConfigError(
            f"{where} has format {found[0]!r} version {found[1]!r}; this layerbridge reads {FORMAT!r} version "
            f"{VERSION}. Take another OUTPUT, or the version that wrote it."
        )
    return build_config(Plan, data, where=where)


def refuse_another(kept: Plan, asked: Plan, output: str, *, done: Collection[int]) -> None:
    """Let a rerun go on only where it would write the same; shards that are not done may have been replaced.

    Args:
        kept: of the output.
        asked: now.
        output: where it is, for the message.
        done: ranks of shards that are done.

    Raises:
        ConfigError: what differs, and what to do.
    """
    differences = [*_options_that_differ(kept, asked), *_shards_that_differ(kept, asked, done)]
    if differences:
        raise ConfigError(
            f"{output} holds another annotation than the one asked for. Different: {'; '.join(differences)}. Give the "
            f"same command as then, or write this one to another OUTPUT. To begin again, delete {output}."
        )


def _options_that_differ(kept: Plan, asked: Plan) -> Iterator[str]:
    if kept.bridge != asked.bridge:
        yield f"the bridge was {kept.run} ({kept.bridge[:12]}), now {asked.run} ({asked.bridge[:12]})"
    for name in Options.model_fields:
        then, now = getattr(kept.options, name), getattr(asked.options, name)
        if then != now:
            yield f"{name} was {_short(then)}, now {_short(now)}"


def _shards_that_differ(kept: Plan, asked: Plan, done: Collection[int]) -> Iterator[str]:
    finished = {kept.shards[rank].name for rank in done}
    then, now = ({shard.name: shard.size for shard in plan.shards} for plan in (kept, asked))
    groups = {
        "new": sorted(now.keys() - then.keys()),
        "gone": sorted(then.keys() - now.keys()),
        "done, and of another size now": sorted(
            name for name in then.keys() & now.keys() & finished if then[name] != now[name]
        ),
    }
    for what, names in groups.items():
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            yield f"{len(names):,} shards are {what}: {', '.join(names[:SHOWN])}{more}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
