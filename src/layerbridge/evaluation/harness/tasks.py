"""Our benchmarks as lm-evaluation-harness tasks: task files, one task a language, rows from `layerbridge.data.tasks`.

A file in `task_files/` is an lm_eval task config whose `task` holds `{language}`; `group` is the benchmark's name, here
and in `layerbridge tasks ls`. lm_eval reads no files and no hub for them: rows come from `Task.load`, so harness and
`layerbridge evaluate` answer the same rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from layerbridge.errors import ConfigError, DataError, nearest, unknown_name
from layerbridge.evaluation.harness.marks import escape

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from layerbridge.data.example import Split
    from layerbridge.data.tasks import Task

MAX_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One of our benchmarks as asked for: all its languages together, or some alone."""

    benchmark: str
    languages: tuple[str, ...]
    as_group: bool
    """Whether an average over the languages is wanted."""


@cache
def task_files() -> dict[str, dict[str, Any]]:
    """Return the task files by benchmark."""
    folder = resources.files("layerbridge").joinpath("evaluation", "harness", "task_files")
    configs = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name[0] != "."]
    return {config["group"]: config for config in sorted(configs, key=lambda config: str(config["group"]))}


@cache
def task_names() -> dict[str, tuple[str, str | None]]:
    """Return every task and group that the task files make: name -> benchmark and language, None for all."""
    from layerbridge.data.tasks import TASKS

    names: dict[str, tuple[str, str | None]] = {}
    for benchmark, config in task_files().items():
        names[benchmark] = (benchmark, None)
        for language in TASKS[benchmark]().languages_of(config["test_split"]):
            names[config["task"].format(language=language)] = (benchmark, language)
    return names


def split_names(
    names: Sequence[str], languages: Sequence[str] | None, foreign: Sequence[str] | None
) -> tuple[list[Asked], list[str]]:
    """Return which of our benchmarks are asked for, and which other tasks of lm_eval.

    Args:
        names: tasks and groups. A task that is also in a group asked for counts once.
        languages: of groups: these alone, as codes.
        foreign: names that lm_eval knows; None: it was not told to look for any.

    Raises:
        ConfigError: no name, an unknown one (says the nearest), or a language that a group does not have.
    """
    if not names:
        raise ConfigError(f"No task was given. Give --tasks, such as --tasks {', '.join(task_files())}.")
    ours = task_names()
    for name in names:
        if name not in ours and name not in (foreign or ()):
            raise ConfigError(_unknown(name, [*ours, *(foreign or ())], foreign is None))
    wanted = [ours[name] for name in dict.fromkeys(names) if name in ours]
    groups = [benchmark for benchmark, language in wanted if language is None]
    if languages is not None and not groups:
        raise ConfigError(f"Languages are of a group ({', '.join(task_files())}), and none was asked for. Drop them.")
    asked = [
        Asked(benchmark=benchmark, languages=_languages(benchmark, languages), as_group=True) for benchmark in groups
    ]
    asked += [
        Asked(benchmark=benchmark, languages=(language,), as_group=False)
        for benchmark, language in wanted
        if language is not None and not any(a.benchmark == benchmark and language in a.languages for a in asked)
    ]
    return asked, [name for name in dict.fromkeys(names) if name not in ours]


def _languages(benchmark: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    known = [language for name, language in task_names().values() if name == benchmark and language is not None]
    for language in chosen or ():
        if language not in known:
            raise ConfigError(unknown_name(f"language of {benchmark}", language, known))
    return tuple(dict.fromkeys(chosen)) if chosen is not None else tuple(known)


def _unknown(name: str, known: Sequence[str], only_ours: bool) -> str:
    left = list(known)
    near: list[str] = []
    while len(near) < MAX_NEAREST and (guess := nearest(name, left)) is not None:
        near.append(guess)
        left.remove(guess)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    ours = ", ".join(f"{group} ({config['task']})" for group, config in task_files().items())
    more = " lm_eval's own tasks need --include-defaults, your own files --include-path." if only_ours else ""
    return f"Unknown task {name!r}.{hint} Known here: {ours}.{more}"


def build_tasks(asked: Sequence[Asked], find_task: Callable[[str], "Task"]) -> list[Any]:
    """Read the rows and return lm_eval's tasks and groups.

    Args:
        asked: benchmarks and languages.
        find_task: benchmark -> our task, which knows where its rows are.

    Raises:
        DataError: rows that are not there or cannot be read.
    """
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    built: list[Any] = []
    for item in asked:
        task = find_task(item.benchmark)
        members = [_build_task(task, item.benchmark, language) for language in item.languages]
        if not item.as_group:
            built += members
            continue
        group = Group.from_config(
            GroupConfig(
                group=item.benchmark,
                aggregate_metric_list=task_files()[item.benchmark]["aggregate_metric_list"],
                metadata={"version": task.version},
            )
        )
        for member in members:
            group.add(member)
        built.append(group)
    return built


def _build_task(task: "Task", benchmark: str, language: str) -> "ConfigurableTask":
    file = task_files()[benchmark]
    split = task.load(language, file["test_split"])
    if not split.examples:
        raise DataError(f"{task.name}, {language}, split {file['test_split']!r} has no rows ({split.source}).")
    config = {key: value for key, value in file.items() if key not in ("group", "aggregate_metric_list")}
    config |= {
        "task": file["task"].format(language=language),
        "dataset_path": split.source,
        "dataset_name": language,
        "metadata": {"version": task.version, "rows_sha256": split.sha256},
    }
    return _task_class()(config, split, task.answers or ())


@cache
def _task_class() -> type:
    """Return lm_eval's task class, with rows that are handed over instead of a data set to load."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    class RowsTask(ConfigurableTask):
        def __init__(self, config: dict[str, Any], split: "Split", answers: Sequence[str]) -> None:
            self._split = split
            self._answers = list(answers)
            super().__init__(config=config)

        def download(self, *args: Any, **kwargs: Any) -> None:
            rows = [
                {"id": row.id, "text": escape(row.text), "answer": row.answer, "answers": self._answers}
                for row in self._split.examples
            ]
            self.dataset = {self.config.test_split: Dataset.from_list(rows)}

    return RowsTask
