"""What an evaluation found and where its numbers came from: the schema of results.json. No torch here.

The file holds counts; accuracies and averages follow from them. The averages are written out as well, for
readers without this package, and checked against the counts when the file is read.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerbridge.atomic import replace_text
from layerbridge.config import BridgeConfig, Recipe
from layerbridge.errors import DataError

FORMAT = "layerbridge-results"
FORMAT_VERSION = 1

Method = Literal["score", "generate"]


class Record(BaseModel):
    """Part of a file format: immutable, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


_Record = TypeVar("_Record", bound=Record)


class BaseModelOrigin(Record):
    """Which frozen model stood on one side of the bridge."""

    name: str
    revision: str | None = None
    fingerprint: str


class Versions(Record):
    """Of the packages that can change a score."""

    layerbridge: str
    torch: str
    transformers: str


class Provenance(Record):
    """Everything that two sets of predictions must share to belong to one evaluation."""

    task: str
    task_version: int
    split: str
    limit: int | None = None
    """Rows per language, the first ones; None: all of them."""
    methods: tuple[Method, ...] = Field(min_length=1)
    max_source_tokens: int
    max_new_tokens: int
    run: str
    kind: Literal["bridge", "baseline"] = "bridge"
    """A baseline is what a bridge is compared with: no bridge was trained for it."""
    fusion: str
    """The fusion's name, or the baseline's."""
    layer: int | None = None
    """Of fusion `single_layer`: the encoder's number of that layer."""
    seed: int | None = None
    """Of the training; None: unknown, as of a checkpoint without its run folder."""
    checkpoint_sha256: str
    config_sha256: str
    """Of the canonical JSON of the bridge's config: `config_sha256`."""
    setup_sha256: str | None = None
    """Of the recipe without its name, seed and data paths: `setup_sha256`. None: no recipe."""
    bases: dict[str, BaseModelOrigin]
    """`encoder` and `llm`."""
    languages_seen: tuple[str, ...] | None = None
    """In training; None: unknown."""
    versions: Versions


class MethodScore(Record):
    """Counts of one way to read answers."""

    correct: int = Field(ge=0)
    unreadable: int = Field(ge=0)
    """Answers that could not be read; counted wrong."""


class LanguageScore(Record):
    """Counts of one language, and the data they were made on."""

    n: int = Field(ge=1)
    methods: dict[Method, MethodScore]
    majority_answer: str
    """The gold answer that occurs most often."""
    majority_correct: int = Field(ge=1)
    """Rows a classifier that always gives `majority_answer` gets right."""
    truncated: int = Field(ge=0)
    """Texts cut at `max_source_tokens`."""
    data_source: str
    data_sha256: str

    @model_validator(mode="after")
    def _check_counts(self) -> "LanguageScore":
        for method, score in self.methods.items():
            if score.correct + score.unreadable > self.n:
                raise ValueError(
                    f"{method} has {score.correct} correct and {score.unreadable} unreadable of {self.n} rows"
                )
        for name in ("majority_correct", "truncated"):
            if getattr(self, name) > self.n:
                raise ValueError(f"{name} is {getattr(self, name)} of {self.n} rows")
        return self

    def accuracy(self, method: Method) -> float:
        """Return the fraction of rows answered right, 0 to 1."""
        return self.methods[method].correct / self.n

    def unreadable_fraction(self, method: Method) -> float:
        """Return the fraction of rows whose answer could not be read, 0 to 1."""
        return self.methods[method].unreadable / self.n

    @property
    def majority_accuracy(self) -> float:
        """The majority-class baseline, 0 to 1."""
        return self.majority_correct / self.n


class Averages(Record):
    """Macro averages over languages, 0 to 1: every language weighs the same."""

    all: float
    seen: float | None
    """Over languages seen in training; None: there are none, or it is unknown which were seen."""
    zero_shot: float | None
    """Over languages not seen in training; None likewise."""


class Results(Record):
    """One evaluation of one checkpoint on one split of one task."""

    provenance: Provenance
    created: AwareDatetime
    """UTC; when the last of its predictions was made."""
    languages: dict[str, LanguageScore] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_methods(self) -> "Results":
        for code, score in self.languages.items():
            if set(score.methods) != set(self.provenance.methods):
                raise ValueError(
                    f"language {code} has the methods {', '.join(sorted(score.methods)) or 'none'}; "
                    f"this evaluation's are {', '.join(sorted(self.provenance.methods))}"
                )
        return self

    def averages(self, method: Method) -> Averages:
        """Return the macro averages of a method's accuracy."""
        return self._averages({code: score.accuracy(method) for code, score in self.languages.items()})

    @property
    def majority_averages(self) -> Averages:
        """Macro averages of the majority-class baseline."""
        return self._averages({code: score.majority_accuracy for code, score in self.languages.items()})

    @property
    def num_truncated(self) -> int:
        """Texts cut at `max_source_tokens`, over all languages."""
        return sum(score.truncated for score in self.languages.values())

    def _averages(self, values: Mapping[str, float]) -> Averages:
        seen = self.provenance.languages_seen
        return Averages(
            all=fmean(values.values()),
            seen=None if seen is None else _mean(value for code, value in values.items() if code in seen),
            zero_shot=None if seen is None else _mean(v for code, v in values.items() if code not in seen),
        )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


# ------------------------------------------------------------------------------------------------------------
# Hashes


def config_sha256(config: BridgeConfig) -> str:
    """Return the sha256 of the canonical JSON of a bridge's config, or of a recipe's bridge part."""
    return json_sha256(without_later(config.model_dump(mode="json", include=set(BridgeConfig.model_fields))))


def setup_sha256(recipe: Recipe) -> str:
    """Return a sha256 that recipes share which differ in nothing but the seed.

    The run's name, evaluation, data paths, and what only moves memory and time about (`HOW_IT_RUNS`) are left out; of a
    file of one's own, of `train_data` and of `self_distillation.texts` the name counts, not the folder.
    """
    data = recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "evaluation": True,
            "training": {"seed"} | HOW_IT_RUNS,
            "task": {"data"},
        },
    )
    train_data = data["task"].pop("train_data", None)
    if train_data is not None:  # rows of another set are another set-up
        data["task"]["train_data"] = Path(train_data).name
    files = data["task"].get("files")
    if files is not None:
        data["task"]["files"] = {part: files[part] and Path(files[part]).name for part in ("train", "dev")}
    distillation = data["training"]["self_distillation"]
    if distillation is not None and distillation["texts"] is not None:
        distillation["texts"] = Path(distillation["texts"]).name
    return json_sha256(without_later(data))


def without_later(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that came after the first results, at their defaults: earlier hashes stay what they were."""
    kept = {key: value for key, value in data.items() if key not in _LATER_PARTS or value != _LATER_PARTS[key]}
    for part, later in (*_LATER.items(), ("fusion", _LATER_OF_FUSIONS.get(data["fusion"]["name"], {}))):
        if isinstance(kept.get(part), dict):
            kept[part] = {k: v for k, v in kept[part].items() if k not in later or v != later[k]}
    return kept


HOW_IT_RUNS = {
    "micro_batch_size",
    "keep_checkpoints",
    "gradient_checkpointing",
    "torch_compile",
    "shard_llm",
    "num_workers",
}
"""Options of `training` that move memory and time about, and no result but for what dropout and noise draw."""

_LATER: dict[str, dict[str, Any]] = {
    "training": {
        "fusion_learning_rate": None,
        "group_by_length": False,
        "feature_precision": "encoder",
        "self_distillation": None,
        "noise_agreement": None,
        "state_noise": 0.0,
    },
    "task": {"rows_seed": None},
}
"""Part of a recipe -> options that came after the first results, and their defaults."""

_LATER_OF_FUSIONS: dict[str, dict[str, Any]] = {
    "global_softmax": {"weights": "softmax", "heads": 1},
    "transformer_softmax": {"weights": "softmax", "temperature": 1.0},
    "attention_pool": {"weights": "softmax", "temperature": 1.0, "heads": 1},
}
"""Fusion -> the same of its own."""

_LATER_PARTS = {"boundary": "zeros", "pooling": {"name": "none", "size": None}}
"""Parts of a bridge that came later, and their defaults."""


def json_sha256(data: Any) -> str:
    """Return the sha256 of the canonical JSON of `data`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------
# The file


def write_results(results: Results, path: str | Path) -> None:
    """Write results.json; a reader sees the old file or the new one, never half of one."""
    data = {"format": FORMAT, "version": FORMAT_VERSION}
    data |= results.model_dump(mode="json") | {"averages": _all_averages(results)}
    replace_text(Path(path), json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_results(path: str | Path) -> Results:
    """Read results.json.

    Raises:
        DataError: no such file, not JSON, not this format, another version, or counts that clash.
    """
    data = read_body(
        Path(path),
        FORMAT,
        FORMAT_VERSION,
        missing=f"No results at {path}. `layerbridge evaluate RUN` writes them.",
        advice="Write it again with `layerbridge evaluate --rescore`.",
    )
    body = {key: value for key, value in data.items() if key != "averages"}
    results = parse_record(Results, body, where=str(path))
    if "averages" in data and not _close(data["averages"], _all_averages(results)):
        raise DataError(
            f"{path}: the averages do not follow from the counts, so one of them was changed by hand. "
            "Write the file again with `layerbridge evaluate --rescore`."
        )
    return results


def read_body(path: Path, wanted: str, version: int, *, missing: str, advice: str) -> dict[str, Any]:
    """Read a JSON file of ours and return what it holds beside its format and version.

    Args:
        path: The file.
        wanted: Its format.
        version: Of the format.
        missing: What to say if there is no file.
        advice: What to do if it is not JSON.

    Raises:
        DataError: no such file, not JSON, another format or another version.
    """
    if not path.is_file():
        raise DataError(missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. {advice}") from None
    check_format(data, wanted, version, where=str(path))
    return {key: value for key, value in data.items() if key not in ("format", "version")}


def check_format(data: Any, wanted: str, version: int, *, where: str) -> None:
    """Raise a DataError unless `data` is a mapping that claims to be format `wanted` in `version`."""
    found = data.get("format") if isinstance(data, dict) else None
    if found != wanted:
        detail = f"its format is {found!r}" if found else "it names no format"
        raise DataError(f"{where} is not of the format {wanted!r}: {detail}.")
    if data.get("version") != version:
        raise DataError(
            f"{where} is {wanted} version {data.get('version')!r}; this layerbridge reads version {version}. "
            "Evaluate again, or read it with the layerbridge that wrote it."
        )


def parse_record(kind: type[_Record], data: Any, *, where: str) -> _Record:
    """Validate `data` as a `kind`; complaints become one DataError that `where` opens."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{where}: {describe_errors(error)}") from None


def describe_errors(error: ValidationError) -> str:
    """Return what pydantic found wrong, on one line."""
    complaints = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the whole"
        complaints.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(complaints)


def _all_averages(results: Results) -> dict[str, dict[str, float | None]]:
    found = {str(method): results.averages(method).model_dump() for method in results.provenance.methods}
    return found | {"majority": results.majority_averages.model_dump()}


def _close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(_close(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, float) and isinstance(found, int | float):
        return math.isclose(found, wanted, abs_tol=1e-9)
    return found == wanted
