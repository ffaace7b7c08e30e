"""Which texts' states are kept, in which files, and in which batches they are encoded. Follows from the texts alone."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

SHARD_BYTES = 2**28
"""A shard is closed before its states, as the encoder puts them out, grow past this: they are in memory at once."""
BATCH_TOKENS = 4096
"""Tokens of one encoder pass, padding included."""

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Texts that are encoded and written together."""

    name: str
    """Follows from the texts."""
    rows: tuple[Ids, ...]


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """Which texts' states are to be on disk."""

    shards: tuple[Shard, ...]
    num_bytes: int
    num_left_out: int
    """Texts that the limit leaves out; the encoder reads them every time."""

    @property
    def num_texts(self) -> int:
        """Texts that are to be on disk."""
        return sum(len(shard.rows) for shard in self.shards)


def divide(
    parts: Iterable[Iterable[Sequence[int]]],
    *,
    max_bytes: int | None,
    kept_bytes: Callable[[Sequence[Ids]], int],
    encoder_bytes: Callable[[Sequence[Ids]], int],
) -> FeaturePlan:
    """Divide texts into shards, in their order.

    Args:
        parts: see `layerbridge.model.features.FeatureStore.plan`.
        max_bytes: stop before the text that would pass this.
        kept_bytes: size of a shard with some texts on disk.
        encoder_bytes: size of texts' states as the encoder puts them out.
    """
    limit = float("inf") if max_bytes is None else max_bytes
    shards: list[Shard] = []
    seen: set[Ids] = set()
    total = num_left_out = 0
    for part in parts:
        new = dict.fromkeys(ids for row in part if (ids := tuple(row)) not in seen)
        seen.update(new)
        for rows in _cut(new, encoder_bytes):
            fitting = [] if num_left_out else list(rows)
            while fitting and total + kept_bytes(fitting) > limit:
                fitting.pop()
            num_left_out += len(rows) - len(fitting)
            if fitting:
                shards.append(Shard(name=_shard_name(fitting), rows=tuple(fitting)))
                total += kept_bytes(fitting)
    return FeaturePlan(shards=tuple(shards), num_bytes=total, num_left_out=num_left_out)


def batches_within_budget(lengths: Sequence[int]) -> list[list[int]]:
    """Put texts of like length together, longest first, `BATCH_TOKENS` a batch."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def digest(row: Sequence[int]) -> bytes:
    """Return what a text is known by: a hash of its token ids."""
    return digest_of_bytes(torch.tensor(row, dtype=torch.int32).numpy().tobytes())


def digest_of_bytes(data: bytes) -> bytes:
    """Return the same of token ids as 32-bit integers."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _cut(rows: Iterable[Ids], encoder_bytes: Callable[[Sequence[Ids]], int]) -> list[list[Ids]]:
    pieces: list[list[Ids]] = []
    size = 0
    for row in rows:
        needed = encoder_bytes([row])
        if not pieces or size + needed > SHARD_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(row)
        size += needed
    return pieces


def _shard_name(rows: Sequence[Ids]) -> str:
    name = hashlib.sha256()
    for row in rows:
        name.update(digest(row))
    return name.hexdigest()[:24]
