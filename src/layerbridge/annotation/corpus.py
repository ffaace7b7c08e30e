"""A file, a folder or a pattern, here or behind any fsspec URL -> the shards of a corpus.

A shard is one file, and one datatrove task. Files whose names begin with `.` or `_` are no shards (`_SUCCESS`, `.crc`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from layerbridge.annotation.plan import Shard
from layerbridge.errors import DataError

if TYPE_CHECKING:
    from datatrove.io import DataFolder

ENDINGS: dict[str, tuple[str, str | None]] = {
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".parquet": ("parquet", None),
}
"""End of a shard's name -> its format and compression."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where the shards are."""

    root: str
    """Folder or URL that their names are relative to."""
    shards: tuple[Shard, ...]
    """In the order of their names."""
    others: int
    """Files that lie there and are none."""
    deep: bool
    """Whether whatever lies below the root is part of it."""


def find_corpus(source: str) -> Corpus:
    """Return the shards of a file, a folder (with all below it) or a pattern such as `in/*.jsonl.gz`.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    from datatrove.io import get_datafolder
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(source)
        root, pattern = _split(path)
        deep = pattern is None or "**" in pattern
        if pattern is None and fs.isfile(path):
            deep = False
            root, pattern = path.rpartition("/")[::2]
        folder = get_datafolder((root or "/", fs))
        there = folder.find("", detail=True) if pattern is None else folder.glob(pattern, detail=True)
        sizes = {name: info["size"] for name, info in there.items() if info["type"] == "file" and not _hidden(name)}
        shards = sorted(name for name in sizes if ending_of(name) is not None)
        found = tuple(Shard(name=name, size=int(sizes[name])) for name in shards)
        url = str(folder.resolve_paths(""))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{source} cannot be read: {error}. Wanted a file, a folder or a URL with shards.") from error
    if not found:
        what = f"{len(sizes):,} files of other kinds" if sizes else "no file"
        raise DataError(f"{source}: found {what}. Wanted shards that end in {', '.join(ENDINGS)}; convert them.")
    return Corpus(root=url, shards=found, others=len(sizes) - len(found), deep=deep)


def ending_of(name: str) -> str | None:
    """Return the ending that says how a shard is read, or None: it is no shard."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)


def refuse_output_inside(corpus: Corpus, output: DataFolder) -> None:
    """Refuse an output that would be input the next time.

    Raises:
        DataError: it is the corpus's folder, or lies in it.
    """
    place = str(output.resolve_paths("")).rstrip("/")
    root = corpus.root.rstrip("/")
    if corpus.deep and (place == root or place.startswith(root + "/")):
        raise DataError(
            f"The output {place} lies in the corpus {root}, so a rerun would read what this one writes. Take an OUTPUT "
            "outside of INPUT."
        )


def _split(path: str) -> tuple[str, str | None]:
    """Return the folder above the first part with a wildcard, and the pattern below it."""
    from fsspec.core import has_magic

    parts = path.split("/")
    first = next((number for number, part in enumerate(parts) if has_magic(part)), None)
    return (path, None) if first is None else ("/".join(parts[:first]), "/".join(parts[first:]))


def _hidden(name: str) -> bool:
    return any(part[0] in "._" for part in PurePosixPath(name).parts)
