"""The whole of an annotation: plan it, refuse what cannot be, run what is not done, say what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.io import get_datafolder
from filelock import FileLock, Timeout

from layerbridge.annotation.asking import BridgeSource
from layerbridge.annotation.corpus import Corpus, find_corpus, refuse_output_inside
from layerbridge.annotation.estimate import Estimate, measure
from layerbridge.annotation.executors import LOGS, AnnotateStep, build_executor
from layerbridge.annotation.outputs import DATA, data_path, whole_file
from layerbridge.annotation.plan import FILE, Options, Plan, from_json, refuse_another, to_json
from layerbridge.annotation.progress import Watch, Work
from layerbridge.annotation.records import RECORDS, Record, add_up, read_record
from layerbridge.annotation.shard import open_shard
from layerbridge.config import build_config
from layerbridge.errors import AnnotationError, ConfigError, DataError, nearest
from layerbridge.model.checkpoint import checkpoint_fingerprint, find_checkpoint, read_header
from layerbridge.prompt import prompt_fields

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor
    from datatrove.io import DataFolder

SUMMARY = "summary.json"
SHOWN = 5
"""Failed shards that a message names."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; `prepare` checks it."""

    run: str
    """Run folder, checkpoint folder or hub name."""
    source: str
    """File, folder, pattern or fsspec URL."""
    output: str
    """Folder or fsspec URL."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Options`, but for what `prepare` finds out: template and columns."""
    raw: bool = False
    """Without the task's prompt around the text."""
    text_column: str | None = None
    """Column of the one field that the prompt has."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the prompt -> column, where they have other names."""
    workers: int = 1
    executor: str = "local"
    executor_options: Mapping[str, str] = field(default_factory=dict)
    part: tuple[int, int] = (1, 1)
    """Which of how many parts of the shards to do here; from 1."""
    device: str | None = None
    encoder: str | None = None
    llm: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An annotation that can begin."""

    plan: Plan
    corpus: Corpus
    source: DataFolder
    output: DataFolder
    executor: PipelineExecutor
    bridge: BridgeSource
    part: range
    """Ranks to do in this call."""
    request: Request


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a call."""

    sums: dict[str, Any]
    """`add_up` of all finished shards, of earlier calls too."""
    here: dict[str, Any]
    """The same of this call."""
    seconds: float
    """Of this call, loading included."""
    worker_seconds: float
    """Of work in this call, loading not included, summed over workers."""
    num_shards: int
    warnings: tuple[str, ...]
    submitted: str | None
    """Of Slurm: number of the job; nothing has come of it yet."""


def prepare(request: Request) -> Prepared:
    """Check everything that can be checked before a bridge is loaded; nothing is written.

    Raises:
        ConfigError: options that cannot be, or another annotation in the output.
        DataError: no shards, or columns that are not there.
        CheckpointError: no checkpoint, or a damaged one.
    """
    if request.workers < 1:
        raise ConfigError(f"workers is {request.workers}; wanted at least 1.")
    header = read_header(find_checkpoint(request.run))
    options = _options(request, header.get("trained_on") or {})
    corpus = find_corpus(request.source)
    source, output = get_datafolder(corpus.root), _output(request.output)
    refuse_output_inside(corpus, output)
    plan = Plan(
        run=Path(request.run).absolute().name,
        bridge=checkpoint_fingerprint(request.run),
        options=options,
        shards=corpus.shards,
    )
    kept = read_plan(output)
    if kept is not None:
        refuse_another(kept, plan, request.output, done=_done(output, kept))
    elif output.isdir(DATA) and output.list_files(DATA):
        raise ConfigError(
            f"{request.output} has a folder {DATA}/ with files, and no {FILE}: they are of something else. Take "
            "another OUTPUT."
        )
    bridge = BridgeSource(
        run=str(Path(request.run).resolve()) if Path(request.run).exists() else request.run,
        fingerprint=plan.bridge,
        device=request.device,
        encoder=request.encoder,
        llm=request.llm,
        trust_remote_code=request.trust_remote_code,
    )
    part = _part(request.part, len(plan.shards))
    executor = build_executor(
        request.executor,
        AnnotateStep(corpus.root, str(output.resolve_paths("")), bridge, plan),
        tasks=len(plan.shards),
        part=part,
        workers=request.workers,
        options=request.executor_options,
    )
    prepared = Prepared(
        plan=plan,
        corpus=corpus,
        source=source,
        output=output,
        executor=executor,
        bridge=bridge,
        part=part,
        request=request,
    )
    if kept is None:
        _look_at_columns(prepared)
    return prepared


def ranks_left(prepared: Prepared) -> list[int]:
    """Return the shards that this call is to do: without their mark of completion, or without their output."""
    done = _done(prepared.output, prepared.plan)
    return [rank for rank in prepared.part if rank not in done]


def estimate(prepared: Prepared) -> Estimate | None:
    """Return what the shards that are left would take, measured on the first rows; None: nothing is left."""
    left = ranks_left(prepared)
    if not left:
        return None
    return measure(prepared.plan, left, prepared.source, prepared.bridge, workers=prepared.request.workers)


def annotate(prepared: Prepared, *, progress: bool = True) -> Report:
    """Do the shards that are left.

    Args:
        prepared: by `prepare`.
        progress: show how far it is.

    Raises:
        AnnotationError: shards that failed, after all others are done; or a worker was killed.
        ConfigError: another call is writing to the output.
    """
    output, plan = prepared.output, prepared.plan
    with _alone(prepared):
        if read_plan(output) != plan:  # none yet, or a shard that was not done has been replaced
            with whole_file(output, FILE, rank=0) as file:
                file.write(to_json(plan).encode())
        left = ranks_left(prepared)
        _forget(output, left)
        work = Work(
            sizes={rank: plan.shards[rank].size for rank in left},
            num_shards=len(prepared.part),
            workers=prepared.request.workers,
        )
        start = time.perf_counter()
        if left and prepared.request.executor == "slurm":
            prepared.executor.run()
        elif left and progress:
            with Watch(output, work):
                prepared.executor.run()
        elif left:
            prepared.executor.run()
        seconds = time.perf_counter() - start
        if left and prepared.request.executor == "slurm":
            return _report(prepared, {}, [], seconds, submitted=str(getattr(prepared.executor, "job_id", None)))
        still = set(ranks_left(prepared))
        records = {rank: read_record(output, rank) for rank in prepared.part}
        done = {rank: record for rank, record in records.items() if record is not None and rank not in still}
        report = _report(prepared, done, [rank for rank in left if rank in done], seconds)
        failed = {plan.shards[rank].name: getattr(records[rank], "error", None) for rank in sorted(still)}
        if not failed and len(prepared.part) == len(plan.shards):
            _write_summary(output, report.sums)
    if failed:
        raise FailedShardsError(_failures(failed, len(prepared.part)), report)
    return report


class FailedShardsError(AnnotationError):
    """Some shards failed and the others are done; `report` says what came of these."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def read_plan(output: DataFolder) -> Plan | None:
    """Return the plan that an output was begun with, or None."""
    if not output.isfile(FILE):
        return None
    return from_json(output.cat_file(FILE).decode(), f"{output.path}/{FILE}")


def _done(output: DataFolder, plan: Plan) -> set[int]:
    """Return the shards that have their mark of completion and their output."""
    marked = set(output.list_files(f"{LOGS}/completions"))
    there = set(output.list_files(DATA))
    return {
        rank
        for rank, shard in enumerate(plan.shards)
        if f"{LOGS}/completions/{rank:05d}" in marked and data_path(shard.name) in there
    }


def _options(request: Request, trained_on: Mapping[str, Any]) -> Options:
    given = dict(request.options)
    method = given.get("method", "classify")
    if method == "classify":
        given["labels"] = _labels(given.get("labels"), trained_on)
        if given.get("max_new_tokens") is not None or given.get("stop"):
            raise ConfigError("max_new_tokens and stop are of generated answers. Add --generate, or leave them out.")
    else:
        if given.get("labels") is not None or given.get("probabilities"):
            raise ConfigError("labels and probabilities are of classes. Leave out --generate, or them.")
        given.setdefault("max_new_tokens", 32)
    template = None if request.raw else trained_on.get("encoder_prompt")
    fields = ("text",) if template is None else prompt_fields(template)
    given |= {"template": template, "columns": _columns(request, fields)}
    return build_config(Options, given, where="annotate")


def _labels(labels: Sequence[str] | None, trained_on: Mapping[str, Any]) -> tuple[str, ...]:
    found = trained_on.get("answers") if labels is None else labels
    if not found:
        raise ConfigError(
            "No labels to choose from: this bridge was trained on no task with a set of answers. Give --labels yes,no, "
            "or write answers with --generate."
        )
    doubled = sorted({label for label in found if list(found).count(label) > 1})
    if doubled:
        raise ConfigError(f"Labels are given twice: {', '.join(map(repr, doubled))}. Give each of them once.")
    return tuple(found)


def _columns(request: Request, fields: tuple[str, ...]) -> dict[str, str]:
    if request.text_column is not None and len(fields) > 1:
        raise ConfigError(
            f"--text-column is for prompts with one field; this one has {len(fields)}. Give --field "
            f"{fields[0]}=COLUMN, and so on for {', '.join(fields[1:])}."
        )
    for name in request.columns:
        if name not in fields:
            guess = nearest(name, fields)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"The prompt has no field {name!r}, it has {', '.join(map(repr, fields))}.{hint}")
    found = {name: request.columns.get(name, name) for name in fields}
    return found if request.text_column is None else {fields[0]: request.text_column}


def _output(url: str) -> DataFolder:
    try:
        return get_datafolder(str(Path(url).absolute()) if "://" not in url else url)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"OUTPUT {url} cannot be written: {error}.") from error


def _part(part: tuple[int, int], num_shards: int) -> range:
    number, parts = part
    if not 1 <= number <= parts:
        raise ConfigError(f"part is {number}/{parts}; wanted a number from 1 to {parts}, such as 1/{parts}.")
    if parts > num_shards:
        raise ConfigError(f"part is {number}/{parts}, and there are {num_shards} shards; wanted at most as many parts.")
    return range(num_shards * (number - 1) // parts, num_shards * number // parts)


def _look_at_columns(prepared: Prepared) -> None:
    """Refuse a corpus whose first rows have none of the columns asked for, before all of its rows are rejected."""
    options, shard = prepared.plan.options, prepared.plan.shards[0]
    try:
        with prepared.source.open(shard.name, "rb") as file:
            window = next(iter(open_shard(file, shard.name, options).windows()), None)
    except DataError as error:
        raise DataError(f"{shard.name}: {error} Say which with --text-column or --field NAME=COLUMN.") from None
    except Exception:  # a broken shard fails by itself, and by its name
        return
    rows = [row.fields for row in window.rows if row.reject is None] if window is not None else []
    for column in options.columns.values() if rows else ():
        if not any(column in fields for fields in rows):
            known = sorted({name for fields in rows for name in fields})
            guess = nearest(column, known)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise DataError(
                f"{shard.name}: none of the first {len(rows):,} rows has a column {column!r}.{hint} Found: "
                f"{', '.join(map(repr, known))}. Say which with --text-column or --field NAME=COLUMN."
            )
    clashing = sorted({name for fields in rows for name in options.clashing(fields)})
    if clashing:
        raise DataError(
            f"{shard.name}: rows have a column {clashing[0]!r} already, which would be added. Give --prefix, such as "
            f"--prefix new_, or --keep without it."
        )


@contextmanager
def _alone(prepared: Prepared) -> Iterator[None]:
    """Hold the output on this machine's disks against a second call of the same part."""
    if not prepared.output.is_local():
        yield
        return
    number, parts = prepared.request.part
    folder = Path(str(prepared.output.resolve_paths("")))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".lock-{number}-of-{parts}", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"Another `layerbridge annotate` is writing to {prepared.request.output}. Wait for it, or end it first."
        ) from None


def _forget(output: DataFolder, ranks: Sequence[int]) -> None:
    """Take away what earlier calls said of shards that are to be done again."""
    there = {*output.list_files(RECORDS), *output.list_files(f"{LOGS}/completions")}
    for rank in ranks:
        for path in (f"{RECORDS}/{rank:05d}.json", f"{LOGS}/completions/{rank:05d}"):
            if path in there:
                output.rm_file(path)


def _report(
    prepared: Prepared,
    done: Mapping[int, Record],
    here: Sequence[int],
    seconds: float,
    submitted: str | None = None,
) -> Report:
    return Report(
        sums=add_up(done.values()),
        here=add_up(done[rank] for rank in here),
        seconds=seconds,
        worker_seconds=sum(done[rank].seconds for rank in here),
        num_shards=len(prepared.part),
        warnings=tuple(sorted({text for rank in here for text in done[rank].warnings})),
        submitted=submitted,
    )


def _write_summary(output: DataFolder, sums: Mapping[str, Any]) -> None:
    head = {"format": "layerbridge-annotation-summary", "version": 1}
    with whole_file(output, SUMMARY, rank=0) as file:
        file.write((json.dumps(head | dict(sums), indent=2) + "\n").encode())


def _failures(failed: Mapping[str, str | None], num_shards: int) -> str:
    lines = [
        f"  {name}: {error or f'not done; its log is in {LOGS}/logs/'}" for name, error in list(failed.items())[:SHOWN]
    ]
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN:,} more; see {RECORDS}/ and {LOGS}/logs/ in the output")
    listed = "\n".join(lines)
    return (
        f"{len(failed):,} of {num_shards:,} shards failed; the others are done.\n{listed}\n"
        "Mend or replace these files and give the same command again: only they are done then."
    )
