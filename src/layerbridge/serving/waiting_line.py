"""Texts that wait for the engine's thread, and which of them make the next batch."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from layerbridge.serving.engine import Reading, Writing
from layerbridge.serving.errors import queue_full, shutting_down
from layerbridge.serving.limits import Limits


class Tokens(NamedTuple):
    """One text's token ids."""

    source: list[int]
    prompt: list[int]


@dataclass(eq=False, kw_only=True)
class Row:
    """One text and what is wanted of it."""

    model: str
    kind: str
    """`generate`, `classify` or `inspect`."""
    number: int
    """Of the text in its request."""
    reading: Reading
    tell: Callable[[object], None]
    """Hands an event, a result or an exception to the request, from any thread."""
    writing: Writing | None = None
    """Of rows that are generated."""
    labels: tuple[str, ...] = ()
    """Of rows that are classified."""
    tokens: Tokens | None = None
    """Once the engine's thread has made them."""
    label_tokens: int = 0
    """Of rows that are classified: LLM tokens of all labels together, which the LLM reads after each text."""
    cancelled: bool = field(default=False)
    """Set when nobody waits for the answer any more."""

    @property
    def company(self) -> Hashable:
        """Rows with an equal one may share a batch."""
        return self.model, self.kind, self.labels, self.kind == "classify" and self.reading.prompt is None

    @property
    def cost(self) -> int:
        """LLM positions that the row needs, answer included."""
        assert self.tokens is not None
        answer = self.writing.max_new_tokens if self.writing else self.label_tokens
        return 2 + sum(map(len, self.tokens)) + answer


class WaitingLine:
    """A bounded queue, first come first served among those that may share a batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Return how many rows wait."""
        return len(self._rows)

    @property
    def closed(self) -> bool:
        """Whether nothing more is let in."""
        return self._closed

    def put(self, rows: Sequence[Row]) -> None:
        """Let all rows in, or none.

        Raises:
            ApiError: 429 where they find no place, 503 once closed.
        """
        with self._changed:
            if self._closed:
                raise shutting_down()
            if len(self._rows) + len(rows) > self._limits.max_queue:
                raise queue_full(len(self._rows), len(rows), self._limits.max_queue)
            self._rows.extend(rows)
            self._changed.notify_all()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Take back rows: those that wait leave at once, those in a batch before its next step."""
        for row in rows:
            row.cancelled = True
        with self._changed:
            if any(row.cancelled for row in self._rows):
                self._rows = deque(row for row in self._rows if not row.cancelled)

    def close(self) -> list[Row]:
        """Let nothing more in, and return the rows that waited."""
        with self._changed:
            self._closed = True
            left, self._rows = list(self._rows), deque()
            self._changed.notify_all()
            return left

    def wait(self, held_back: Callable[[], Collection[str]] = tuple) -> None:
        """Return when rows wait that may be taken, and shortly others may have joined the first; or when closed.

        Args:
            held_back: says which kinds of rows are not taken now; `look_again` says that this has changed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._candidates(held_back()))
            full = self._limits.batch_rows
            seconds = self._limits.batch_wait_ms / 1000
            self._changed.wait_for(lambda: len(self._rows) >= full or self._closed, timeout=seconds)

    def look_again(self) -> None:
        """Say that rows which were held back may be taken now."""
        with self._changed:
            self._changed.notify_all()

    def take(self, prepare: Callable[[Row], bool], *, held_back: Collection[str] = ()) -> list[Row]:
        """Return the next batch: the first row and those that may share it, within rows and tokens; empty for none.

        Args:
            prepare: gives a row its tokens; False for a row that is not to be answered, which is then left out.
            held_back: kinds of rows that are not taken.
        """
        batch: list[Row] = []
        longest = num_unread = 0
        for row in self._candidates(held_back):
            if batch and row.company != batch[0].company:
                continue
            if row.cancelled:  # since the line was looked at
                self._remove(row)
                continue
            if row.tokens is None and not prepare(row):
                self._remove(row)
                num_unread += 1
                if num_unread >= self._limits.batch_rows:  # whoever has a place in a batch waits meanwhile
                    break
                continue
            longest = max(longest, row.cost)
            if batch and longest * (len(batch) + 1) > self._limits.batch_tokens:
                break
            self._remove(row)
            if not row.cancelled:
                batch.append(row)
            if len(batch) >= self._limits.batch_rows:
                break
        return batch

    def _candidates(self, held_back: Collection[str]) -> list[Row]:
        with self._changed:
            return [row for row in self._rows if row.kind not in held_back]

    def _remove(self, row: Row) -> None:
        with self._changed:
            if row in self._rows:
                self._rows.remove(row)
