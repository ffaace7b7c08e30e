"""Which rows of each optimizer update this process learns from, and in which passes.

One update takes `batch_size` rows, however many processes share them: the same rows as one process would take, dealt
out so that each has about as many tokens. An epoch's last update may have fewer rows; no row is taken twice to fill it
up, as that would change the loss. A process that then has no row for a pass is given one as a filler, with nothing to
learn from it, so that all processes do the same number of passes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from layerbridge.training.length_groups import LengthGroups, RandomOrder
from layerbridge.training.token_rows import TokenRows


class SharedBatches(torch.utils.data.Sampler[list[int]]):
    """The passes of one process: lists of row numbers; a filler of row i is -1 - i (`TokenRows`).

    Args:
        order: of the rows, the same in all processes.
        lengths: of each row, in tokens.
        batch_size: rows of one update.
        micro_batch_size: rows of one pass at most.
        process: number of this process.
        num_processes: that share an update.
    """

    def __init__(
        self,
        order: RandomOrder | LengthGroups,
        lengths: Sequence[int],
        *,
        batch_size: int,
        micro_batch_size: int,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.order = order
        self.lengths = lengths
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.process = process
        self.num_processes = num_processes

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole * self._num_passes(self.batch_size) + self._num_passes(rest)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for row in self.order:
            batch.append(row)
            if len(batch) == self.batch_size:
                yield from self._passes(batch)
                batch = []
        if batch:
            yield from self._passes(batch)

    def _num_passes(self, num_rows: int) -> int:
        return -(-num_rows // (self.micro_batch_size * self.num_processes))

    def _passes(self, batch: list[int]) -> Iterator[list[int]]:
        if self.num_processes == 1:
            mine, size = batch, self.micro_batch_size
        else:
            mine = deal(batch, self.lengths, self.num_processes)[self.process]
            size = max(1, -(-len(mine) // self._num_passes(len(batch))))
        for number in range(self._num_passes(len(batch))):
            yield mine[number * size : (number + 1) * size] or [-1 - batch[0]]


def deal(batch: Sequence[int], lengths: Sequence[int], num_hands: int) -> list[list[int]]:
    """Deal rows out in equal numbers (to one) and about equal tokens: longest first, to and fro."""
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    longest_first = sorted(batch, key=lambda row: (-lengths[row], row))
    for start in range(0, len(batch), num_hands):
        round_ = longest_first[start : start + num_hands]
        turn = range(num_hands) if (start // num_hands) % 2 == 0 else range(num_hands - 1, -1, -1)
        for hand, row in zip(turn, round_, strict=False):
            hands[hand].append(row)
    return hands


class BatchLoader(DataLoader[Any]):
    """Batches of `SharedBatches`, put together by `num_workers` processes beside this one.

    Args:
        rows: tokenised already, so that workers only pad.
        batches: of this process.
        collate: rows to one batch.
        num_workers: 0: put together here.
        pin_memory: for copies to a GPU beside its work.
    """

    def __init__(
        self,
        rows: TokenRows,
        batches: SharedBatches,
        *,
        collate: Callable[[Any], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            rows,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )
        self.batches = batches

    def __iter__(self) -> Any:
        """Yield the batches of an epoch; the first time this starts the workers."""
        with _workers_start() if self.num_workers else nullcontext():
            return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the Trainer calls it."""
        self.batches.set_epoch(epoch)


@contextmanager
def _workers_start() -> Iterator[None]:
    """Tell processes that start now that they need no tokenizer: unsaid, tokenizers would warn of each."""
    name = "TOKENIZERS_PARALLELISM"
    said = name in os.environ
    os.environ.setdefault(name, "true")
    try:
        yield
    finally:
        if not said:
            del os.environ[name]
