"""The order of an epoch's rows: at random, or in batches of like length."""

from collections.abc import Iterator, Sequence

import torch


class RandomOrder(torch.utils.data.Sampler[int]):
    """All rows once an epoch, in a random order that follows from seed and epoch.

    Args:
        num_rows: of the training set.
        seed: with the epoch's number it gives the order.
    """

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)  # as accelerate's sampler, and so its order
        yield from torch.randperm(self.num_rows, generator=generator).tolist()


class LengthGroups(torch.utils.data.Sampler[int]):
    """All rows once an epoch, in batches of like length; the order of the batches is random.

    Fifty batches' rows at a time are drawn at random and sorted by length, so a batch still mixes what the epoch mixes.

    Args:
        lengths: of each row.
        batch_size: rows of one optimizer update.
        seed: with the epoch's number it gives the order.
    """

    BATCHES_A_POOL = 50

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.BATCHES_A_POOL * self.batch_size
        ordered: list[int] = []
        for start in range(0, len(order), pool):
            ordered += sorted(order[start : start + pool], key=lambda row: -self.lengths[row])
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        for index in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[index]
        yield from rest  # last, so that every other batch is a whole one
