"""From a study to all of its results: the plan with its cost, then the work. Reads top to bottom."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerbridge.atomic import replace_text
from layerbridge.errors import ConfigError
from layerbridge.studies.inputs import find_tasks
from layerbridge.studies.study import Job, Keys, Pair, Study, jobs_of
from layerbridge.studies.work import LOCKS, Workshop
from layerbridge.training.trainer import num_steps

STUDY_FILE = "study.json"
PACKAGES = ("jinja2", "matplotlib", "scipy", "sklearn", "threadpoolctl")


@dataclass(frozen=True, kw_only=True)
class TaskCost:
    """One task's part of a study."""

    task: str
    """The study's name for it."""
    source: str
    """Where its test rows are read."""
    train_source: str
    split: str
    limit: int | None
    num_languages: int
    train_rows: int
    dev_rows: int
    test_rows: int
    """Over all languages."""
    num_jobs: int
    """Bridges to train and baselines to ask."""
    num_done: int
    steps_left: int
    """Optimizer updates."""
    answers_left: int
    """Texts to answer, over all runs, baselines, languages and methods."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study about to be done."""

    study: Study
    pair_name: str
    pair: Pair
    out: Path
    threads: int
    """Of each process; kept from the study's first call, because sums depend on it in their last digits."""
    jobs: tuple[Job, ...]
    left_out: dict[str, str]
    """Task -> why it is not in it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says of tasks that are not in it."""
        reasons = {name: reason.removeprefix(f"Task {name}: ") for name, reason in self.left_out.items()}
        return tuple(f"Task {name} was left out: {reason}" for name, reason in reasons.items())

    @property
    def command(self) -> str:
        """What to type for all that is in the study's folder, by this call or an earlier one."""
        places = json.loads((self.out / STUDY_FILE).read_text(encoding="utf-8"))["jobs"]
        whole = self.study.task_names(self.study.pairs[self.pair_name])
        tasks = [name for name in whole if any(place.startswith(f"{name}/") for place in places)]
        named = re.findall(r"/(?!layer-)[^/]*-seed-(\d+)$", "\n".join(places), flags=re.M)
        seeds = sorted({int(seed) for seed in named})
        command = f"layerbridge reproduce {self.study.name} --pair {self.pair_name}"
        if tasks != [name for name in whole if name not in self.left_out]:
            command += f" --tasks {','.join(tasks)}"
        if seeds != sorted(self.study.seeds):
            command += f" --seeds {','.join(map(str, seeds))}"
        return command

    @property
    def main(self) -> str | None:
        """The task whose claim comes first, as its results call it."""
        wanted = self.pair.main or self.study.main
        return next((job.recipe.task.name for job in self.jobs if job.task == wanted), None)


def plan_study(
    study: Study,
    pair_name: str | None,
    workshop: Workshop,
    *,
    data: Path | None,
    threads: int,
    seeds: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    write: bool = True,
) -> Plan:
    """Find a study's data and list its work.

    Args:
        study: the grid.
        pair_name: of the study; by default its first.
        workshop: of this process; its folder gets study.json, or has that of the same study.
        data: a folder of many sets; None: the hub.
        threads: of each process, if the study has not begun yet.
        seeds: by default the study's.
        tasks: by default all of the study's.
        write: begin the study, or note in its folder what is added to it.

    Raises:
        ConfigError: no such pair or task, no data, or another study in the folder.
    """
    need_packages()
    name, pair = study.pair(pair_name)
    if tasks is not None:
        pair = pair.model_copy(update={"only_tasks": tuple(tasks)})
    found, left_out = find_tasks(study, pair, data)
    with workshop.lock(workshop.out, "study").acquire(timeout=-1):  # processes that start together take turns
        begun = _begun(workshop.out, study, name)
        layers = begun.get("layers") or _layers(study, pair, found, workshop)
        jobs = jobs_of(study, pair, found, seeds=seeds, layers=layers)
        record = {
            "study": study.name,
            "pair": name,
            "definition_sha256": _definition(study, name),
            "threads": begun.get("threads", threads),
            "layers": layers,
            "jobs": sorted({*begun.get("jobs", ()), *(job.place for job in jobs)}),
        }
        if write and record != begun:
            replace_text(workshop.out / STUDY_FILE, json.dumps(record, indent=2) + "\n")
    return Plan(
        study=study,
        pair_name=name,
        pair=pair,
        out=workshop.out,
        threads=record["threads"],
        jobs=tuple(jobs),
        left_out=left_out,
    )


def need_packages() -> None:
    """Raise a ConfigError if a package is missing that a study needs in the end: better now than after days."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"Studies need {', '.join(missing)}, not installed here: pip install 'layerbridge[study]'")


def costs(plan: Plan, workshop: Workshop) -> list[TaskCost]:
    """Return what each task of a plan has and what of it is left to do."""
    return [_cost(task, plan, workshop) for task in dict.fromkeys(job.task for job in plan.jobs)]


def _cost(task: str, plan: Plan, workshop: Workshop) -> TaskCost:
    jobs = [job for job in plan.jobs if job.task == task]
    left = [job for job in jobs if not workshop.is_done(job)]
    first = jobs[0].recipe
    read = workshop.inputs.of(first)
    evaluation = first.evaluation
    test_rows = sum(len(split.examples[: evaluation.limit]) for split in read.splits.values())
    return TaskCost(
        task=task,
        source=next(iter(read.splits.values())).source,
        train_source=read.train.source,
        split=evaluation.split,
        limit=evaluation.limit,
        num_languages=len(read.splits),
        train_rows=len(read.train),
        dev_rows=len(read.dev),
        test_rows=test_rows,
        num_jobs=len(jobs),
        num_done=len(jobs) - len(left),
        steps_left=sum(
            num_steps(job.recipe.training, len(workshop.inputs.of(job.recipe).train))
            for job in left
            if job.kind == "bridge"
        ),
        answers_left=test_rows * len(evaluation.methods) * len(left),
    )


def _begun(out: Path, study: Study, pair: str) -> dict:
    path = out / STUDY_FILE
    if not path.is_file():
        if out.is_dir() and any(not item.name.startswith(".") and item.name != LOCKS for item in out.iterdir()):
            raise ConfigError(f"{out} holds files and no {STUDY_FILE}, so it is no study. Choose another folder.")
        return {}
    begun: dict = json.loads(path.read_text(encoding="utf-8"))
    if (begun["study"], begun["pair"], begun["definition_sha256"]) != (study.name, pair, _definition(study, pair)):
        raise ConfigError(
            f"{out} holds study {begun['study']} with pair {begun['pair']}, and this is {study.name} with {pair}"
            + ("" if (begun["study"], begun["pair"]) != (study.name, pair) else ", defined otherwise now")
            + ". Name another folder with --out, or move that one away."
        )
    return begun


def _definition(study: Study, pair: str) -> str:
    return hashlib.sha256(json.dumps(study.definition(pair), sort_keys=True).encode()).hexdigest()


def _layers(study: Study, pair: Pair, tasks: dict[str, Keys], workshop: Workshop) -> list[int]:
    """Return the encoder's layer numbers, if there is a layer sweep over them; this loads the models."""
    sweep = study.sweep(pair)
    if sweep is None or not set(sweep.tasks) & set(tasks):
        return []
    first = jobs_of(study, pair, dict([next(iter(tasks.items()))]), seeds=[study.seeds[0]])[0]
    return list(workshop.bridge(first).encoder.layer_numbers)
