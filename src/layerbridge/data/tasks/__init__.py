"""Tasks: one file a benchmark, and `own` for a task of one's own. `TASKS` is the one table of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from layerbridge.config import BuiltinTaskConfig, OwnTaskConfig
from layerbridge.data.tasks import (
    amazon_reviews,
    headlines,
    indicxnli,
    own,
    sib200,
    sinhala_news,
    sinhala_news_rksk,
    xnli,
)
from layerbridge.data.tasks.source import FolderSource, HubSource
from layerbridge.data.tasks.task import SplitReport, Task
from layerbridge.errors import ConfigError, unknown_name

TASKS: dict[str, Callable[[], Task]] = {
    "xnli": xnli.build,
    "indicxnli": indicxnli.build,
    "sinhala_news": sinhala_news.build,
    "sinhala_news_rksk": sinhala_news_rksk.build,
    "amazon_reviews": amazon_reviews.build,
    "sib200": sib200.build,
    "headlines": headlines.build,
}

__all__ = ["TASKS", "SplitReport", "Task", "build_task"]


def build_task(config: BuiltinTaskConfig | OwnTaskConfig) -> Task:
    """Build the task that a recipe names or describes. Reads no data yet.

    Raises:
        ConfigError: an unknown name, or a description that can't be meant.
    """
    if isinstance(config, OwnTaskConfig):
        return own.build(config)
    if config.name not in TASKS:
        raise ConfigError(
            unknown_name("task", config.name, TASKS)
            + " A task of your own needs `files`, `encoder_prompt` and `answer_column`."
        )
    task = TASKS[config.name]()
    if config.data is not None:
        task = _from_folder(task, Path(config.data).expanduser())
    elif config.revision is not None:
        if not task.hub:
            raise ConfigError(f"revision is of a hub set, and task {task.name} has none. Drop task.revision.")
        task = replace(task, source=HubSource(repository=task.hub, revision=config.revision))
    if config.train_data is not None:
        languages = {task.code(name, "train") for name in config.train_languages}
        unnamed = languages.pop() if len(languages) == 1 else ""
        task = _trained_from(task, FolderSource(path=Path(config.train_data).expanduser(), unnamed=unnamed))
    return task


def _trained_from(task: Task, source: FolderSource) -> Task:
    english = _trained_from(task.english_from, source) if task.english_from else None
    return replace(task, train_source=source, english_from=english)


def _from_folder(task: Task, folder: Path) -> Task:
    english = _from_folder(task.english_from, folder) if task.english_from else None
    return replace(task, source=FolderSource(path=folder), english_from=english)
