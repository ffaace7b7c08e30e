"""What an evaluation reads of a run folder, and where in it evaluations go."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from layerbridge.config import (
    BuiltinTaskConfig,
    EvaluationConfig,
    OwnTaskConfig,
    Recipe,
    TaskConfig,
    load_recipe,
)
from layerbridge.errors import ConfigError, DataError, unknown_name
from layerbridge.evaluation.score import RESULTS_FILE
from layerbridge.languages import language

EVALUATION = "evaluation"
CHECKPOINT_FILE = "bridge.safetensors"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, or a checkpoint on its own."""

    name: str
    folder: Path
    checkpoint: Path
    recipe: Recipe | None
    """None: a checkpoint on its own."""
    seed: int | None = None
    """None: unknown."""
    languages_seen: tuple[str, ...] | None = None
    """In training; None: unknown."""

    def evaluation_folder(self, task: str, config: EvaluationConfig) -> Path:
        """Return where an evaluation of this run goes by default: evaluation/TASK-SPLIT[-first-N]."""
        return self.folder / EVALUATION / evaluation_name(task, config)

    def choose_task(self, name: str | None, data: str | None = None) -> TaskConfig:
        """Return the run's own task, or the built-in one called `name`, on the data at `data` if given.

        Raises:
            ConfigError: a checkpoint on its own and no name, or data for a task that names its own files.
        """
        own = None if self.recipe is None else self.recipe.task
        if own is not None and name in (None, own.name):
            if data is None:
                return own
            if isinstance(own, OwnTaskConfig):
                raise ConfigError(f"Task {own.name!r} names its own files in the recipe; drop --data.")
            return own.model_copy(update={"data": data})
        if name is None:
            raise ConfigError(f"{self.folder} is a checkpoint without a recipe; name a task with --task.")
        return BuiltinTaskConfig(name=name, data=data)


def evaluation_name(task: str, config: EvaluationConfig) -> str:
    """Return the name of an evaluation's folder: TASK-SPLIT[-first-N]."""
    name = f"{task}-{config.split}" + (f"-first-{config.limit}" if config.limit else "")
    return re.sub(r"[^\w.-]+", "-", name)


def find_run(path: str | Path) -> Run:
    """Return the run at `path`: a run folder, its checkpoint folder, or a checkpoint on its own.

    Raises:
        ConfigError: no such folder, or neither a run nor a checkpoint.
        DataError: a run.json that cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"No run or checkpoint at {path}. Give the folder that `layerbridge train` wrote.")
    if path.resolve().name == "checkpoint" and (path.resolve().parent / "recipe.yaml").is_file():
        path = path.resolve().parent
    if not (path / "recipe.yaml").is_file():
        if not (path / CHECKPOINT_FILE).is_file():
            raise ConfigError(f"{path} is neither a run (no recipe.yaml) nor a checkpoint (no {CHECKPOINT_FILE}).")
        return Run(name=path.resolve().name, folder=path, checkpoint=path, recipe=None)
    recipe = load_recipe(path / "recipe.yaml")
    record = _read_record(path / "run.json")
    return Run(
        name=recipe.name,
        folder=path,
        checkpoint=path / "checkpoint",
        recipe=recipe,
        seed=record.get("seed", recipe.training.seed),
        languages_seen=tuple(map(language_code, record.get("languages_seen", recipe.task.train_languages))),
    )


def language_code(name: str) -> str:
    """Return our code for a language; a task of one's own may have languages that no table knows."""
    try:
        return language(name).code
    except ConfigError:
        return name


def _read_record(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{path} holds {type(record).__name__}, wanted an object.")
    return record


def find_results(path: str | Path, evaluation: str | None = None) -> Path:
    """Return the results.json meant by `path`: the file itself, an evaluation folder, or a run folder.

    Args:
        path: Where to look.
        evaluation: Which of a run's evaluations, as its folder is named (`xnli-test`); needed if several.

    Raises:
        ConfigError: no such path, several evaluations and none chosen, or one chosen that is not there.
        DataError: a run without results.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"No run, evaluation folder or results.json at {path}.")
    if (path / RESULTS_FILE).is_file():
        return path / RESULTS_FILE
    found = {file.parent.name: file for file in sorted(path.glob(f"{EVALUATION}/*/{RESULTS_FILE}"))}
    if not found:
        raise DataError(f"{path} has no results. `layerbridge evaluate {path}` makes them.")
    if evaluation is not None:
        if evaluation not in found:
            raise ConfigError(f"{path}: {unknown_name('evaluation', evaluation, found)}")
        return found[evaluation]
    if len(found) > 1:
        raise ConfigError(f"{path} has several evaluations: {', '.join(found)}. Choose one with --task.")
    return next(iter(found.values()))
