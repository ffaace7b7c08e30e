"""A folder of many sets, one folder each: which of a task's keys read it from there.

`ROOT/<task>` holds a task in any layout that `task.data` takes. Rows to train on may be in another set's folder: the
English of `indicxnli` is XNLI's, and `nli_en` is English of the same kind for where XNLI's own training rows are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerbridge.config import BuiltinTaskConfig
from layerbridge.data.tasks import TASKS, Task, build_task
from layerbridge.data.tasks.source import MissingDataError, UnreachableDataError
from layerbridge.errors import ConfigError, unknown_name

FOLDERS = {"sinhala_news_rksk": ("sinhala_news_rksk", "sinhala_news")}
"""Task -> names that its folder may have, if not the task's alone."""

TRAIN_FOLDERS = {"xnli": ("nli_en",), "indicxnli": ("xnli", "nli_en")}
"""Task -> folders whose English it may be trained on where its own folder has none; the first that has some."""

STAND_INS = {"sinhala_news": "sinhala_news_rksk"}
"""Task -> the task to take where its own files are not there."""

EVALUATED = ("test", "dev")
"""Splits to evaluate on, best first."""


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """A task as it lies in a folder of many sets."""

    name: str
    """The task's, or its stand-in's."""
    data: Path
    train_data: Path | None = None
    """Where the training rows are, if not in `data`."""
    split: str
    """To evaluate: `test`, or `dev` where there is no test file."""
    languages: tuple[str, ...]
    """Those with a file of `split`, in the task's order."""

    @property
    def task_keys(self) -> dict[str, str]:
        """The keys of `task` in a recipe that read it: name, data and, where needed, train_data."""
        keys = {"name": self.name, "data": str(self.data)}
        return keys if self.train_data is None else keys | {"train_data": str(self.train_data)}


def local_task(root: Path, name: str, *, split: str | None = None) -> LocalTask | None:
    """Find a built-in task in a folder of many sets; looks at names of files only.

    Args:
        root: the folder.
        name: the task's.
        split: to evaluate, and no other; by default the best of `EVALUATED` that has files.

    Returns:
        How to read it. None if there is nothing to evaluate or no English to train on: `why_missing` says what.

    Raises:
        ConfigError: no such task.
        DataError: two files of one split, so that it is not clear which is meant.
    """
    try:
        return _find(root, name, split)
    except (MissingDataError, UnreachableDataError):
        return None


def why_missing(root: Path, name: str, *, split: str | None = None) -> str:
    """Return why `local_task` finds nothing, in words for a user; empty if it finds something."""
    try:
        _find(root, name, split)
    except (MissingDataError, UnreachableDataError) as error:
        return str(error)
    return ""


def _find(root: Path, name: str, asked: str | None) -> LocalTask:
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    folders = [root / folder for folder in FOLDERS.get(name, (name,))]
    folder = next(filter(Path.is_dir, folders), None)
    try:
        if folder is None:
            wanted = " or ".join(folder.name for folder in folders)
            raise UnreachableDataError(f"Task {name}: no folder {wanted} in {root}.")
        task = build_task(BuiltinTaskConfig(name=name, data=str(folder)))
        split, languages = _evaluated(task, folder, EVALUATED if asked is None else (asked,))
        return LocalTask(
            name=name, data=folder, train_data=_train_data(root, task, folder), split=split, languages=languages
        )
    except (MissingDataError, UnreachableDataError):
        other = local_task(root, STAND_INS[name], split=asked) if name in STAND_INS else None
        if other is None:
            raise
        return other


def _evaluated(task: Task, folder: Path, splits: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    for split in splits:
        possible = [code for code in task.languages if split in task.splits and code in task.languages_of(split)]
        if languages := tuple(code for code in possible if task.has(code, split)):
            return split, languages
    raise MissingDataError(f"Task {task.name}: {folder.name} has no {' or '.join(splits)} file of its languages.")


def _train_data(root: Path, task: Task, folder: Path) -> Path | None:
    if task.has("en", "train"):
        return None
    others = [root / name for name in TRAIN_FOLDERS.get(task.name, ())]
    for other in others:
        config = BuiltinTaskConfig(name=task.name, data=str(folder), train_data=str(other))
        if other.is_dir() and build_task(config).has("en", "train"):
            return other
    raise MissingDataError(
        f"Task {task.name}: no English rows to train on in {', '.join(path.name for path in (folder, *others))}."
    )
