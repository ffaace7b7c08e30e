"""What a study's cells read: each task's rows, where they are found, and the texts that an encoder will meet."""

import json
import re
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
from layerbridge.studies.study import Job, Keys, Pair, Study, merge, texts_of
from layerbridge.training.self_distillation import read_texts

HELD_OUT = "held_out"
"""As `evaluation.split`, in studies: the training rows that `task.dev_rows` set aside. For choosing on a task whose own
dev and test rows are all to be reported."""


def find_tasks(study: Study, pair: Pair, data: Path | None) -> tuple[dict[str, Keys], dict[str, str]]:
    """Find the data of a study's tasks.

    `evaluation.split` of a task decides what is looked for: `test` is the default, and takes dev where there is no test
    file; any other is taken as it is said.

    Args:
        study: the grid.
        pair: of the study.
        data: a folder of many sets; None: each from where its recipe says, by default the hub.

    Returns:
        Task name -> recipe keys that say where it is read, and the tasks left out -> why.

    Raises:
        ConfigError: no such folder, or no task in it that can be done.
    """
    data = None if data is None else data.resolve()
    if data is not None and not data.is_dir():
        raise ConfigError(f"No folder of data at {data}. Give one that holds a folder for each task: xnli, sib200, ...")
    found: dict[str, Keys] = {}
    left_out: dict[str, str] = {}
    for name in study.task_names(pair):
        # A task of one's own names its files itself.
        keys = {} if data is None or name not in TASKS else _find(study, pair, name, data, left_out)
        problem = None if keys is None else _chooses_on_evaluated(study, pair, name, keys)
        if problem is not None:
            left_out[name] = problem
        elif keys is not None:
            found[name] = keys
    if not found:
        place = "can be done" if data is None else f"is in {data}"
        raise ConfigError(f"None of the tasks of study {study.name} {place}: {' '.join(left_out.values())}")
    return found, left_out


def _find(study: Study, pair: Pair, name: str, data: Path, left_out: dict[str, str]) -> Keys | None:
    """Return where a built-in task is read in a folder of many sets; None: nowhere, and `left_out` says why."""
    wanted = study.recipe(pair, name, study.reference, 0, name="probe").evaluation
    split = None if wanted.split in ("test", HELD_OUT) else wanted.split
    local = local_task(data, name, split=split)
    if local is None:
        # The report says it too, and where the folder lies is nobody's business.
        left_out[name] = why_missing(data, name, split=split).replace(str(data), "the data folder")
        return None
    place: Keys = {"task": local.task_keys}
    if wanted.split != HELD_OUT:
        codes = (
            local.languages if wanted.languages is None else tuple(dict.fromkeys(map(language_code, wanted.languages)))
        )
        languages = [code for code in codes if code in local.languages]
        absent = [code for code in codes if code not in local.languages]
        if absent:
            left_out[f"{name} in {', '.join(absent)}"] = f"no file of its {local.split} split"
        if not languages:
            return None
        place["evaluation"] = {"split": local.split, "languages": languages}
    return merge(study.stand_ins.get(local.name, {}), place)


def _chooses_on_evaluated(study: Study, pair: Pair, name: str, keys: Keys) -> str | None:
    """Return what is wrong if a set-up of a task would choose its best step on rows that are evaluated; else None."""
    for set_up in study.set_ups:
        recipe = study.recipe(pair, name, set_up, 0, name="probe", extra=[keys])
        split, rows = recipe.evaluation.split, recipe.task
        if split == HELD_OUT and not rows.dev_rows:
            return "its rows held out of training are to be evaluated, and none are; set task.dev_rows"
        own_dev = split == "dev" and not rows.dev_rows and getattr(rows, "train_data", None) is None
        if recipe.training.select == "best" and (own_dev or split == HELD_OUT):
            advice = "set task.dev_rows, or training.select: last" if own_dev else "set training.select: last"
            return f"its {split} rows are to be evaluated, and they choose the best step; {advice}"
    return None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that one cell reads."""

    task: Task
    train: Split
    dev: Split
    splits: dict[str, Split]
    """Language code -> rows to evaluate, before any limit."""


def by_name(keys: Keys) -> Keys:
    """Return recipe keys in which a file of texts to distil on is its name, not where it lies."""
    path = texts_of(keys)
    return merge(keys, {"training": {"self_distillation": {"texts": Path(path).name}}}) if path else keys


class InputCache:
    """Reads each task's rows, and each file of texts to distil on, once, however many cells share them."""

    def __init__(self) -> None:
        self._tasks: dict[str, Inputs] = {}
        self._texts: dict[str, Split] = {}

    def texts(self, recipe: Recipe) -> Split | None:
        """Return the texts of a file that a recipe's run distils on before its task; None: it names no file.

        Raises:
            DataError: a file that cannot be read.
        """
        distillation = recipe.training.self_distillation
        if distillation is None or distillation.texts is None:
            return None
        if distillation.texts not in self._texts:
            self._texts[distillation.texts] = read_texts(distillation.texts)
        return self._texts[distillation.texts]

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
            held_out = recipe.evaluation.split == HELD_OUT
            splits = by_language(dev) if held_out else load_splits(task, recipe.evaluation)
            self._tasks[key] = Inputs(task=task, train=train, dev=dev, splits=splits)
        return self._tasks[key]


def texts_read(jobs: Sequence[Job], inputs: InputCache) -> dict[str, str]:
    """Return what the texts say that jobs distil on: `TASK/SET_UP` -> hash of them, the same for all seeds.

    Raises:
        DataError: a file that cannot be read.
    """
    found: dict[str, str] = {}
    for job in jobs:
        texts = inputs.texts(job.recipe) if job.kind == "bridge" else None
        if texts is not None:
            found[re.sub(r"-seed-\d+$", "", job.place)] = texts.sha256
    return found


def by_language(rows: Split) -> dict[str, Split]:
    """Return a split's rows as one split a language, in their order."""
    codes = dict.fromkeys(example.language for example in rows.examples)
    return {
        code: Split.of((example for example in rows.examples if example.language == code), source=rows.source)
        for code in codes
    }


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
        to_distil_on = inputs.texts(job.recipe)
        if job.kind == "bridge" and to_distil_on is not None:
            wanted.append((to_distil_on, limit, None))
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
