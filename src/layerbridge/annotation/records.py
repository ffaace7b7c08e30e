"""What is known of each shard: how far it is, what it came to. One small file a shard, which its worker writes and
whoever waits reads, on this machine or another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from layerbridge.annotation.outputs import whole_file

if TYPE_CHECKING:
    from datatrove.io import DataFolder

RECORDS = "progress"


@dataclass(kw_only=True)
class Record:
    """Of one shard."""

    shard: str
    state: Literal["working", "done", "failed"] = "working"
    rows: int = 0
    """Read, blank lines not counted."""
    written: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    cut: int = 0
    """Rows whose text was cut at max_source_tokens."""
    tokens: int = 0
    """Of the encoder, of all texts that were answered."""
    read: int = 0
    """Bytes of the shard."""
    seconds: float = 0.0
    """Of work, without loading the bridge."""
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def record_path(rank: int) -> str:
    """Return where a shard's record is, relative to the output."""
    return f"{RECORDS}/{rank:05d}.json"


def write_record(folder: DataFolder, rank: int, record: Record) -> None:
    """Put a record in the place of the one before."""
    with whole_file(folder, record_path(rank), rank=rank) as file:
        file.write(json.dumps(asdict(record)).encode())


def read_record(folder: DataFolder, rank: int) -> Record | None:
    """Return a shard's record; None where there is none."""
    try:
        return Record(**json.loads(folder.cat_file(record_path(rank))))
    except (OSError, ValueError, TypeError):
        return None


def add_up(records: Iterable[Record]) -> dict[str, Any]:
    """Return the sums over shards."""
    rejected: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
        sums.update({name: getattr(record, name) for name in ("rows", "written", "cut", "tokens")} | {"shards": 1})
    names = ("shards", "rows", "written", "cut", "tokens")
    return {name: sums[name] for name in names} | {"rejected": dict(sorted(rejected.items()))}
