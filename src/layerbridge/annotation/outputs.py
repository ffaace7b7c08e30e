"""Output files that are whole or not there, whatever is killed when.

On this machine's disks a file is written under `partial/`, forced to disk, and moved to its place in one step.
Elsewhere it is written to a temporary file here and uploaded: an object store shows an object when its upload is
complete. On file systems without that (SFTP, for one) a cut-off upload can be seen, but its shard has no mark of
completion and is done again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from datatrove.io import DataFolder

DATA = "data"
REJECTS = "rejects"
PARTIAL = "partial"


def data_path(name: str) -> str:
    """Return where a shard's rows go, relative to the output."""
    return f"{DATA}/{name}"


def rejects_path(name: str) -> str:
    """Return where a shard's bad rows go; its ending stays, so that no two shards share one."""
    return f"{REJECTS}/{name}.jsonl"


@contextlib.contextmanager
def whole_file(folder: DataFolder, path: str, *, rank: int) -> Iterator[BinaryIO]:
    """Give a file to write to, which is at `path` once the block has ended without an error, and not before.

    Args:
        folder: of the output.
        path: relative to it.
        rank: of the shard, whose later try sweeps up what this one may leave.
    """
    if folder.is_local():
        target = Path(str(folder.resolve_paths(path)))
        partial = Path(str(folder.resolve_paths(f"{PARTIAL}/{rank:05d}.{uuid.uuid4().hex}")))
        partial.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as room:
        local = Path(room) / "shard"
        with local.open("wb") as file:
            yield file
        folder.makedirs(path.rpartition("/")[0], exist_ok=True)
        folder.put_file(str(local), path)


def sweep(folder: DataFolder, rank: int) -> None:
    """Delete what a killed try of a shard left."""
    if folder.is_local():
        for left in Path(str(folder.resolve_paths(PARTIAL))).glob(f"{rank:05d}.*"):
            left.unlink(missing_ok=True)
