"""One shard: read in windows, asked about, written whole, its bad rows beside it."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from layerbridge.annotation.asking import ask
from layerbridge.annotation.corpus import ENDINGS, ending_of
from layerbridge.annotation.jsonl import JsonlShard, to_line
from layerbridge.annotation.outputs import data_path, rejects_path, sweep, whole_file
from layerbridge.annotation.parquet import ParquetShard
from layerbridge.annotation.plan import Options, Plan
from layerbridge.annotation.records import Record, write_record
from layerbridge.annotation.rows import Outcome, Reject, Window
from layerbridge.errors import AnnotationError, LayerbridgeError
from layerbridge.model.bridge import Bridge

if TYPE_CHECKING:
    from datatrove.io import DataFolder

FORMATS: dict[str, type[JsonlShard] | type[ParquetShard]] = {"jsonl": JsonlShard, "parquet": ParquetShard}

SHOWN_CHARACTERS = 2000
"""Of a bad row in the rejects."""
RECORD_EVERY = 1.0
"""Seconds between two records of a shard's progress on this machine's disks."""
RECORD_EVERY_AFAR = 15.0
"""The same where each is an upload."""


def open_shard(file: BinaryIO, name: str, options: Options) -> JsonlShard | ParquetShard:
    """Return a shard as its ending says.

    Raises:
        DataError: its columns do not suit the annotation.
        OSError, pa.ArrowException: it is not what its ending says.
    """
    ending = ending_of(name)
    assert ending is not None, name
    kind, compression = ENDINGS[ending]
    return FORMATS[kind](file, options, compression)


def annotate_shard(plan: Plan, rank: int, source: DataFolder, output: DataFolder, bridge: Bridge) -> Record:
    """Annotate one shard and return what came of it; its record says so too, also when it fails.

    Args:
        plan: of the annotation.
        rank: number of the shard.
        source: folder of the corpus.
        output: folder of the annotation.
        bridge: loaded already.

    Raises:
        AnnotationError: whatever it failed at, with its name; other shards are none the worse.
    """
    sweep(output, rank)
    record = Record(shard=plan.shards[rank].name)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            _work(plan, rank, source, output, bridge, record)
        record.warnings = sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})
        record.state = "done"
    except Exception as error:
        what = str(error) if isinstance(error, LayerbridgeError) else f"{type(error).__name__}: {error}"
        record.state, record.error = "failed", what
        raise AnnotationError(f"{record.shard}: {what}") from error  # datatrove's log has all of it
    finally:
        if record.state != "working":  # not on the way out of an interrupt
            write_record(output, rank, record)
    return record


def _work(plan: Plan, rank: int, source: DataFolder, output: DataFolder, bridge: Bridge, record: Record) -> None:
    shard = plan.shards[rank]
    if source.size(shard.name) != shard.size:
        raise AnnotationError(
            f"has {source.size(shard.name):,} bytes, and had {shard.size:,} when the annotation was begun. Put the "
            "old file back, or annotate into another OUTPUT."
        )
    start = time.perf_counter()
    tell = _Telling(output, rank, record)
    with (
        source.open(shard.name, "rb") as file,
        whole_file(output, data_path(shard.name), rank=rank) as sink,
        _rejects(output, rejects_path(shard.name), rank) as reject,
    ):
        reader = open_shard(file, shard.name, plan.options)
        writer = reader.writer(sink)
        rejected: Counter[str] = Counter()
        for window in reader.windows():
            found = ask(bridge, window.rows, plan.options)
            writer.write(window, found.outcomes)
            for index, outcome in enumerate(found.outcomes):
                if isinstance(outcome, Reject):
                    rejected[outcome.reason] += 1
                    reject(_reject_line(reader.place, window, index, outcome, plan.options))
            record.rows += len(window.rows)
            record.rejected = dict(rejected)
            record.written = record.rows - rejected.total()
            record.cut += found.cut
            record.tokens += found.tokens
            record.read = window.read
            record.seconds = time.perf_counter() - start
            tell()
        writer.close()
    record.read = shard.size
    record.seconds = time.perf_counter() - start


def _reject_line(place: str, window: Window, index: int, outcome: Outcome, options: Options) -> bytes:
    assert isinstance(outcome, Reject)
    row, raw = window.rows[index], window.raw(index)
    fields: dict[str, Any] = {
        place: row.number,
        "id": _id(row.fields.get(options.id_column)),
        "reason": outcome.reason,
        "detail": outcome.detail,
        "raw": raw[:SHOWN_CHARACTERS],
    }
    if len(raw) > SHOWN_CHARACTERS:
        fields["raw_characters"] = len(raw)
    return to_line(fields)


def _id(value: Any) -> Any:
    """Return an id as JSON has it: a parquet file may have ids of other kinds."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _rejects(output: DataFolder, path: str, rank: int) -> Iterator[Callable[[bytes], object]]:
    """Give what writes a line of rejects; without one there is no file."""
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []

        def write(line: bytes) -> None:
            if not files:
                files.append(stack.enter_context(whole_file(output, path, rank=rank)))
            files[0].write(line)

        yield write


class _Telling:
    """Writes a shard's record now and then."""

    def __init__(self, output: DataFolder, rank: int, record: Record) -> None:
        self._output, self._rank, self._record = output, rank, record
        self._every = RECORD_EVERY if output.is_local() else RECORD_EVERY_AFAR
        self._last = -self._every

    def __call__(self) -> None:
        now = time.perf_counter()
        if now - self._last >= self._every:
            self._last = now
            write_record(self._output, self._rank, self._record)
