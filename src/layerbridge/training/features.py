"""Training from kept features: every text is encoded once; then no epoch, seed or fusion asks the encoder again."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layerbridge.model.bridge import Bridge
from layerbridge.model.feature_plan import FeaturePlan
from layerbridge.model.features import ERRORS, FeatureStore
from layerbridge.training.token_rows import TokenRows

log = logging.getLogger(__name__)


def open_store(bridge: Bridge, cache: Path, precision: str) -> FeatureStore:
    """Return the store of a bridge's encoder in a cache folder.

    Raises:
        ConfigError: the encoder trains, so that its states change.
    """
    fingerprint = str(bridge.bases["encoder"]["fingerprint"])
    return FeatureStore(cache, bridge.encoder, fingerprint=fingerprint, precision=precision)


def keep_features(
    store: FeatureStore, parts: Sequence[TokenRows], *, max_bytes: int | None, progress: bool = True
) -> FeaturePlan:
    """Encode what is not in the cache yet, together with other processes that do the same.

    Args:
        store: to fill and open.
        parts: training rows first: they are read most often, so a limit leaves out the others before them.
        max_bytes: how large the cache may get; texts that do not fit are left to the encoder, and that is said.
        progress: show a bar.
    """
    plan = store.plan((_ids(part) for part in parts), max_bytes)
    if plan.num_left_out:
        log.warning(
            "%d of %d texts do not fit in the cache's %.1f GB and are encoded every time.",
            plan.num_left_out,
            plan.num_left_out + plan.num_texts,
            (max_bytes or 0) / 1e9,
        )
    total = sum(len(shard.rows) for shard in store.missing(plan))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (progress and total)) as bars:
        bar = bars.add_task("texts encoded", total=total)
        store.fill(plan, max_bytes=max_bytes, on_texts=lambda number: bars.advance(bar, number))
    return plan


def kept_precision(store: FeatureStore) -> dict[str, Any]:
    """Return what records say of how a store keeps states: the precision, and what it cost."""
    return {"precision": store.precision, **dict(zip(ERRORS, store.error, strict=True))}


def describe_features(
    store: FeatureStore | None, parts: Sequence[TokenRows], encoder_passes: int
) -> dict[str, Any] | None:
    """Return what the run record says of kept features; None where none were kept.

    Args:
        store: that the run read.
        parts: the rows that it read.
        encoder_passes: that this process's encoder made in training nevertheless.
    """
    if store is None:
        return None
    texts = {tuple(ids) for part in parts for ids in _ids(part)}
    kept = [ids for ids in texts if ids in store]
    return {
        **kept_precision(store),
        "texts_kept": len(kept),
        "texts_left_out": len(texts) - len(kept),
        "bytes": sum(map(len, kept)) * store.bytes_per_token,
        "encoder_passes": encoder_passes,
    }


def _ids(rows: TokenRows) -> Iterator[list[int]]:
    for number in range(len(rows)):
        yield rows.source[number].tolist()
