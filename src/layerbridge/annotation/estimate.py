"""What an annotation would take: rows a second of one worker, measured on the corpus's own first rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from layerbridge.annotation.asking import BridgeSource, ask, bridge_here
from layerbridge.annotation.parquet import ParquetShard
from layerbridge.annotation.plan import Plan
from layerbridge.annotation.shard import open_shard

if TYPE_CHECKING:
    from datatrove.io import DataFolder

WARM_UP_ROWS = 32
MEASURE_SECONDS = 10.0
"""As long as rows are asked, at least one window of them."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of what is left to do."""

    shards: int
    rows: int
    """By their bytes, with as many rows a byte as the first of these shards has."""
    rows_per_second: float
    """Of one worker, once the bridge is loaded."""
    tokens_per_second: float
    rejected: int
    """Of the rows that were asked."""
    asked: int
    workers: int

    @property
    def seconds(self) -> float:
        """For all rows that are left, if workers do not slow each other down."""
        return self.rows / self.rows_per_second / self.workers


def measure(plan: Plan, ranks: list[int], source: DataFolder, bridge: BridgeSource, *, workers: int) -> Estimate:
    """Ask about the first rows of the first shard that is left, and write nothing.

    Args:
        plan: of the annotation.
        ranks: of shards that are left; at least one.
        source: folder of the corpus.
        bridge: to load.
        workers: of the annotation; this one takes as many threads as each of them would.
    """
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    loaded = bridge_here(bridge)
    rows = tokens = rejected = read = 0
    seconds = 0.0
    with source.open(plan.shards[ranks[0]].name, "rb") as file:
        reader = open_shard(file, plan.shards[ranks[0]].name, plan.options)
        exact = reader.num_rows if isinstance(reader, ParquetShard) else None
        for window in reader.windows():
            if not rows:
                ask(loaded, window.rows[:WARM_UP_ROWS], plan.options)
            start = time.perf_counter()
            found = ask(loaded, window.rows, plan.options)
            seconds += time.perf_counter() - start
            rows += len(window.rows)
            tokens += found.tokens
            rejected += sum(not isinstance(outcome, dict) for outcome in found.outcomes)
            read = window.read
            if seconds >= MEASURE_SECONDS:
                break
    total = sum(plan.shards[rank].size for rank in ranks)
    share = (exact / plan.shards[ranks[0]].size) if exact is not None else rows / max(1, read)
    return Estimate(
        shards=len(ranks),
        rows=round(total * share),
        rows_per_second=rows / max(seconds, 1e-9),
        tokens_per_second=tokens / max(seconds, 1e-9),
        rejected=rejected,
        asked=rows,
        workers=workers,
    )
