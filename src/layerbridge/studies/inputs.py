"""What a study's cells read: each task's rows, where they are found, and the texts that an encoder will meet."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerbridge.config import Recipe
from layerbridge.data.example import Split
from layerbridge.data.local import local_task, why_missing
from layerbridge.data.sentences import example_sentences
from layerbridge.data.tasks import TASKS, Task, build_task
from layerbridge.errors import ConfigError
from layerbridge.evaluation.predict import load_splits
from layerbridge.evaluation.run_folder import language_code
from layerbridge.model.processor import BridgeProcessor
from layerbridge.studies.study import Job, Keys, Pair, Study, merge


def find_tasks(study: Study, pair: Pair, data: Path | None) -> tuple[dict[str, Keys], dict[str, str]]:
    """Find the data of a study's tasks.

    Args:
        study: the grid.
        pair: of the study.
        data: a folder of many sets; None: each from where its recipe says, by default the hub.

    Returns:
        Task name -> recipe keys that say where it is read, and the tasks left out -> why.

    Raises:
        ConfigError: no such folder, or no task in it.
    """
    names = study.task_names(pair)
    data = None if data is None else data.resolve()
    if data is None:
        return {name: {} for name in names}, {}
    if not data.is_dir():
        raise ConfigError(f"No folder of data at {data}. Give one that holds a folder for each task: xnli, sib200, ...")
    found: dict[str, Keys] = {}
    left_out = {}
    for name in names:
        if name not in TASKS:
            found[name] = {}  # a task of one's own names its files itself
            continue
        local = local_task(data, name)
        if local is None:
            # The report says it too, and where the folder lies is nobody's business.
            left_out[name] = why_missing(data, name).replace(str(data), "the data folder")
            continue
        recipe = study.recipe(pair, name, study.reference, 0, name="probe")
        if local.split == "dev" and local.train_data is None and not recipe.task.dev_rows:
            left_out[name] = "only its dev rows are there, and they choose the best step; set task.dev_rows"
            continue
        wanted = recipe.evaluation.languages
        codes = local.languages if wanted is None else tuple(dict.fromkeys(map(language_code, wanted)))
        languages = [code for code in codes if code in local.languages]
        absent = [code for code in codes if code not in local.languages]
        if absent:
            left_out[f"{name} in {', '.join(absent)}"] = f"no file of its {local.split} split"
        if not languages:
            continue
        place = {"task": local.task_keys, "evaluation": {"split": local.split, "languages": languages}}
        found[name] = merge(study.stand_ins.get(local.name, {}), place)
    if not found:
        reasons = " ".join(left_out.values())
        raise ConfigError(f"None of the tasks of study {study.name} is in {data}: {reasons}")
    return found, left_out


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that one cell reads."""

    task: Task
    train: Split
    dev: Split
    splits: dict[str, Split]
    """Language code -> rows to evaluate, before any limit."""


class InputCache:
    """Reads each task's rows once, however many cells share them."""

    def __init__(self) -> None:
        self._tasks: dict[str, Inputs] = {}

    def of(self, recipe: Recipe) -> Inputs:
        """Return what a recipe's run reads."""
        seed = recipe.training.seed if recipe.task.rows_seed is None else recipe.task.rows_seed
        key = json.dumps(
            [
                recipe.task.model_dump(mode="json"),
                seed,
                recipe.evaluation.model_dump(mode="json", include={"split", "languages"}),
            ],
            sort_keys=True,
        )
        if key not in self._tasks:
            task = build_task(recipe.task)
            train, dev = task.load_training(recipe.task, seed=seed)
            splits = load_splits(task, recipe.evaluation)
            self._tasks[key] = Inputs(task=task, train=train, dev=dev, splits=splits)
        return self._tasks[key]


def encoder_parts(jobs: Sequence[Job], inputs: InputCache, processor: BridgeProcessor) -> Iterator[list[list[int]]]:
    """Yield the token ids of all texts that the jobs' encoder will meet, each part once.

    Training texts come first: they are read most often, so a limit leaves out test texts before them.
    """
    seen: set[tuple[str, int, int | None]] = set()
    wanted: list[tuple[Split, int, int | None]] = []
    for job in jobs:
        read = inputs.of(job.recipe)
        limit = job.recipe.training.max_source_tokens
        wanted += [(read.train, limit, None), (read.dev, limit, None)]
    for job in jobs:
        read, evaluation = inputs.of(job.recipe), job.recipe.evaluation
        wanted += [(split, evaluation.max_source_tokens, evaluation.limit) for split in read.splits.values()]
    for split, max_tokens, max_rows in wanted:
        key = (split.sha256, max_tokens, max_rows)
        if split.examples and key not in seen:
            seen.add(key)
            yield processor.source_ids([example.text for example in split.examples[:max_rows]], max_tokens)
    sentences: dict[tuple[str, int], list[list[int]]] = {}
    for job in jobs:
        evaluation = job.recipe.evaluation
        for texts in example_sentences(inputs.of(job.recipe).splits).values():
            for text in texts:
                place = (text, evaluation.max_source_tokens)
                sentences.setdefault(place, processor.source_ids([text], evaluation.max_source_tokens))
    yield [row for rows in sentences.values() for row in rows]
