"""How far an annotation is, shown while it runs: rows, shards, speed, and what is left.

Workers write a record a shard (`records.py`); a thread here reads those of shards under way.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from layerbridge.annotation.records import Record, read_record

if TYPE_CHECKING:
    from datatrove.io import DataFolder

LOOK_EVERY = 0.5
"""Seconds between two looks on this machine's disks."""
LOOK_EVERY_AFAR = 10.0
SAY_EVERY = 30.0
"""Seconds between two lines where the output is no terminal."""
AHEAD = 4
"""Shards beyond the number of workers that are looked at."""


@dataclass(kw_only=True)
class Work:
    """What is to be done in one call."""

    sizes: dict[int, int]
    """Rank of each shard that is to be done -> its bytes."""
    num_shards: int
    """Of the whole part, done ones included."""
    workers: int


class Watch:
    """Shows progress while its block runs.

    Args:
        output: folder of the annotation.
        work: of this call.
        stream: where to show it.
    """

    def __init__(self, output: DataFolder, work: Work, stream: TextIO | None = None) -> None:
        self._output, self._work = output, work
        self._stream = stream or sys.stderr  # as it is now: workers in this process redirect it
        self._waiting = sorted(work.sizes)
        self._finished: list[Record] = []
        self._open: list[Record] = []
        self._first: tuple[float, int] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Read the records of shards under way; they are begun in the order of their ranks."""
        self._open, seen = [], 0
        for rank in list(self._waiting):
            record = read_record(self._output, rank)
            if record is not None and record.state != "working":
                self._waiting.remove(rank)
                self._finished.append(record)
                continue
            seen += 1
            if record is not None:
                self._open.append(record)
            if seen >= self._work.workers + AHEAD:
                break
        if self._first is None and (self._open or self._finished):
            self._first = (time.monotonic(), self._read)

    @property
    def _read(self) -> int:
        return sum(record.read for record in (*self._finished, *self._open))

    def facts(self) -> dict[str, Any]:
        """Return what is shown: rows, shards, rows a second, seconds left or None."""
        records: Sequence[Record] = [*self._finished, *self._open]
        rows = sum(record.rows for record in records)
        done = self._work.num_shards - len(self._work.sizes) + len(self._finished)
        facts: dict[str, Any] = {"rows": rows, "shards": done, "rows_per_second": None, "left": None}
        if self._first is not None:
            seconds, read = time.monotonic() - self._first[0], self._read - self._first[1]
            total = sum(self._work.sizes.values())
            if seconds > 0 and read > 0:
                facts["left"] = (total - self._read) * seconds / read
                facts["rows_per_second"] = rows * (read / self._read) / seconds
        return facts

    def _show(self) -> None:
        total = sum(self._work.sizes.values())
        console = Console(file=self._stream)
        every = LOOK_EVERY if self._output.is_local() else LOOK_EVERY_AFAR
        if not console.is_terminal:
            said = time.monotonic()
            while not self._over.wait(every):
                self.look()
                if time.monotonic() - said >= SAY_EVERY:
                    said = time.monotonic()
                    print(f"annotate: {self._line()}", file=self._stream, flush=True)
            return
        with Progress(BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.description}"), console=console) as bar:
            task = bar.add_task("loading", total=max(1, total))
            while not self._over.wait(every):
                self.look()
                bar.update(task, completed=self._read, description=self._line())
            self.look()
            bar.update(task, completed=self._read, description=self._line())

    def _line(self) -> str:
        facts = self.facts()
        line = f"{facts['shards']:,} of {self._work.num_shards:,} shards, {facts['rows']:,} rows"
        if facts["rows_per_second"] is not None:
            line += f", {facts['rows_per_second']:,.0f} rows/s, about {duration(facts['left'])} left"
        return line


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours:,} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
