"""Where a task's rows come from: the hub, a local folder, one local file, or files named one by one.

A `Layout` says how a set names its files. Its own patterns come first; a local folder may also use the common
ones below. In a pattern `{config}` is the set's name for the language (locally also our code), `{split}` its
name for the split, `{ext}` any format that can be read and `*` anything but a slash. The first pattern that
matches wins; with a `*` it may match several files (shards), which are read in the order of their names.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

from layerbridge.data.files import FORMATS, TEXT_FORMATS, file_format
from layerbridge.errors import DataError

COMMON_PATTERNS = (
    "{config}/{split}/*.parquet",
    "{config}/{split}.{ext}",
    "{config}/{split}-*.{ext}",
    "data/{config}/{split}.{ext}",
    "data/{config}/{split}-*.{ext}",
    "{split}/{config}.{ext}",
    "{split}-{config}.{ext}",
    "{config}-{split}.{ext}",
)
"""Tried in a local folder after the set's own."""

TEST_PATTERNS = ("{config}.{ext}",)
"""Tried in a local folder for the test split only: a file that names no split must not also be trained on."""

COMMON_SPLIT_NAMES = {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}

_MAX_DEPTH = 4
_ENDINGS = "(?:parquet|(?:" + "|".join(TEXT_FORMATS) + r")(?:\.gz)?)"


class MissingDataError(DataError):
    """There is no file for this language and split; what is there may be all right."""


class UnreachableDataError(DataError):
    """The folder or the hub set as a whole can't be reached: there is no use in asking for the next file."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a set names its files."""

    patterns: tuple[str, ...]
    """Of the hub set; the first that matches."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Our language code -> the set's name, where they differ."""
    split_names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: COMMON_SPLIT_NAMES)
    """Our split -> the set's names. May hold `{config}`."""
    undivided: Mapping[str, str] = field(default_factory=dict)
    """Language -> pattern of the one file with all of its rows, which `Task.shares` divides into splits."""

    def expand(self, language: str, split: str, *, local: bool) -> list[str]:
        """Return the patterns for one language and split, best first; `{ext}` stays."""
        config = self.configs.get(language, language)
        own = [
            pattern.replace("{split}", name).replace("{config}", spelling)
            for pattern in self.patterns
            for spelling in ((config, language) if local else (config,))
            for name in self.split_names[split]
        ]
        common = [
            pattern.replace("{split}", name).replace("{config}", spelling)
            for pattern in COMMON_PATTERNS + (TEST_PATTERNS if split == "test" else ())
            for spelling in (config, language)
            for name in COMMON_SPLIT_NAMES[split]
        ]
        return list(dict.fromkeys(own + common if local else own))


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files of one language and split, and what to call them."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    """The files as messages name them: relative to the data folder."""
    source: str
    """See `Split.source`."""
    undivided: bool = False
    """Whether the rows are those of all splits (`Layout.undivided`)."""


class Source(Protocol):
    """Finds the files of a language and split."""

    def find(self, layout: Layout, *, language: str, split: str) -> Found:
        """Return the files.

        Raises:
            MissingDataError: there are none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A local folder in the hub set's schema, or one file of it."""

    path: Path
    label: str = ""
    """For `Split.source`; by default `local:<folder name>`."""
    unnamed: str = ""
    """Language of files whose names tell the split alone, such as `train.tsv`; empty: they count for nothing."""

    def find(self, layout: Layout, *, language: str, split: str) -> Found:
        """See `Source`. A single file must tell its language and split by its name, as in a folder."""
        if not self.path.exists():
            raise UnreachableDataError(
                f"No data at {self.path}. Give a folder or a file, as `task.data` or `task.train_data` in the recipe "
                f"or with `--data`."
            )
        source = self.label or f"local:{self.path.resolve().name}"
        patterns = layout.expand(language, split, local=True)
        if language == self.unnamed:
            patterns += [f"{name}.{{ext}}" for name in layout.split_names[split] if "{" not in name]
        undivided = [layout.undivided[language]] if language in layout.undivided else []
        if self.path.is_file():
            return self._find_one_file(undivided, patterns, source, language=language, split=split)
        listing = self._files
        if names := first_match(undivided, listing):
            return Found(files=tuple(self.path / name for name in names), names=names, source=source, undivided=True)
        if names := first_match(patterns, listing):
            return Found(files=tuple(self.path / name for name in names), names=names, source=source)
        held = ", ".join(listing[:10]) + (f" and {len(listing) - 10} more" if len(listing) > 10 else "")
        raise MissingDataError(
            f"No {split} file of language {language!r} in {self.path.resolve().name}. Looked for "
            f"{', '.join(undivided + patterns)}; {{ext}} is one of {', '.join(FORMATS)}. The folder holds "
            f"{held or 'no data file'}."
        )

    @cached_property
    def _files(self) -> list[str]:
        return _listing(self.path)

    def _find_one_file(
        self, undivided: Sequence[str], patterns: Sequence[str], source: str, *, language: str, split: str
    ) -> Found:
        parts = self.path.resolve().parts[-_MAX_DEPTH:]
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            for kind in (undivided, patterns):
                if first_match(kind, [name]):
                    whole = kind is undivided
                    return Found(files=(self.path,), names=(self.path.name,), source=source, undivided=whole)
        raise MissingDataError(
            f"{self.path.name} is one file, and its name does not say that it holds {split} rows of language "
            f"{language!r}. Name it like {split}-{language}.tsv, or give its folder."
        )


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A data set on the Hugging Face hub. Only the files asked for are fetched, and no script is ever run."""

    repository: str
    revision: str | None = None

    def find(self, layout: Layout, *, language: str, split: str) -> Found:
        """See `Source`. Fetches the files, or takes them from the hub's cache."""
        patterns = layout.expand(language, split, local=False)
        folder = self._fetch([pattern.replace("{ext}", "*") for pattern in patterns])
        # The folder of a snapshot is called by its commit: `main` becomes a revision that can be read again.
        commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else self.revision or "main"
        names = first_match(patterns, _listing(folder))
        if not names:
            raise MissingDataError(
                f"Hub set {self.repository} at {commit} has no {split} file of language {language!r}. Looked "
                f"for {', '.join(patterns)}. Name another `task.revision`, or give a local copy with "
                f"`task.data`."
            )
        return Found(
            files=tuple(folder / name for name in names),
            names=names,
            source=f"hub:{self.repository}@{commit}",
        )

    def _fetch(self, patterns: list[str]) -> Path:
        import huggingface_hub
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            HTTPError,  # of whichever HTTP client the hub's library stands on
            RepositoryNotFoundError,
        )

        try:
            folder = huggingface_hub.snapshot_download(
                self.repository, repo_type="dataset", revision=self.revision, allow_patterns=patterns
            )
        except GatedRepoError as error:
            what = "asks its readers to accept terms: do so on its page and log in with `hf auth login`"
            raise UnreachableDataError(f"Hub set {self.repository} {what}. ({_first_line(error)})") from error
        except RepositoryNotFoundError as error:
            what = "does not exist or is private: log in with `hf auth login`, or use a local copy (`task.data`)"
            raise UnreachableDataError(f"Hub set {self.repository} {what}. ({_first_line(error)})") from error
        except (OSError, HFValidationError, HTTPError) as error:
            raise UnreachableDataError(
                f"Hub set {self.repository} at revision {self.revision or 'main'} can't be fetched "
                f"({_first_line(error)}). Check the network and the revision, or give a local copy with "
                f"`task.data`."
            ) from error
        return Path(folder)


@dataclass(frozen=True, kw_only=True)
class NoSource:
    """A set that is on no hub and not in the package: a folder of it must be named."""

    where: str
    """Where its files are to be had, and in which form they are read."""

    def find(self, layout: Layout, *, language: str, split: str) -> Found:
        """See `Source`. Always raises."""
        raise UnreachableDataError(
            f"This set is on no hub, so its {split} rows of language {language!r} can't be fetched. {self.where} Then "
            f"name the folder: `task.data` in the recipe, or `--data`."
        )


@dataclass(frozen=True, kw_only=True)
class FilesSource:
    """Files named one by one: a task of one's own."""

    files: Mapping[tuple[str, str], Path]
    """(language, split) -> file."""

    def find(self, layout: Layout, *, language: str, split: str) -> Found:
        """See `Source`."""
        path = self.files.get((language, split))
        if path is None:
            raise MissingDataError(f"The recipe names no {split} file of language {language!r}. Add it to task.files.")
        if not path.is_file():
            raise MissingDataError(
                f"No file at {path}, which task.files names as the {split} file of language {language!r}. "
                f"Check the path; it is meant from the recipe's own folder, else from the working directory."
            )
        return Found(files=(path,), names=(path.name,), source=f"local:{path.name}")


def first_match(patterns: Sequence[str], listing: Sequence[str]) -> tuple[str, ...]:
    """Return the files that the first matching pattern matches, by name.

    Raises:
        DataError: they are in several formats, so that rows would be read twice.
    """
    for pattern in patterns:
        names = tuple(sorted(filter(_regex(pattern).fullmatch, listing)))
        formats = {file_format(Path(name)) for name in names}
        if len(formats) > 1 or (len(names) > 1 and "*" not in pattern):
            raise DataError(f"Found {' and '.join(names)}, wanted one of them. Move the others out of the data folder.")
        if names:
            return names
    return ()


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(re.escape("{ext}"), _ENDINGS).replace(re.escape("*"), "[^/]*")
    return re.compile(escaped)


def _listing(folder: Path) -> list[str]:
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        if len(inside.parts) >= _MAX_DEPTH - 1:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((inside / name).as_posix() for name in files if file_format(Path(name)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
