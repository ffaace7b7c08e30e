"""Making room in a feature cache: the shards used longest ago go, and nothing that is no shard is touched or counted.

A user may name any folder as the cache, also one with models in it. A file is taken for a shard if it has a shard's
name (`KIND/SHARD.safetensors`, hashes of 16 and 24 hex digits) and says in its metadata that it is one.
"""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

FORMAT = "layerbridge-features-1"
"""What a shard's metadata calls itself."""
_KIND, _SHARD = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{24}")


def make_room(root: Path, kept: Collection[Path], *, num_bytes: int, max_bytes: int) -> int:
    """Delete the shards used longest ago until what is needed fits.

    Args:
        root: the cache folder.
        kept: shards that are needed, there or not.
        num_bytes: size of these.
        max_bytes: what they and the others may have together.

    Returns:
        Bytes freed. Files that may not be deleted are passed over.
    """
    others = []
    for path in root.glob("*/*.safetensors"):
        with suppress(OSError):  # another process made room, or it is not ours to see
            if path not in kept and is_shard(path):
                others.append((path.stat(), path))
    others.sort(key=lambda item: (item[0].st_mtime, item[1].name))
    total = num_bytes + sum(stat.st_size for stat, _ in others)
    freed = 0
    for stat, path in others:
        if total - freed <= max_bytes:
            break
        with suppress(OSError):
            path.unlink(missing_ok=True)
            freed += stat.st_size
    return freed


def is_shard(path: Path) -> bool:
    """Return whether a file is a shard of a feature cache, by its name and by what it says of itself."""
    if path.is_symlink() or not (_KIND.fullmatch(path.parent.name) and _SHARD.fullmatch(path.stem)):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except SafetensorError:
        return False
