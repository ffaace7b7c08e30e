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
from layerbridge.results import json_sha256
from layerbridge.studies.inputs import by_name, find_tasks, texts_read
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
    seconds_a_job: float | None
    """Mean of the done ones, on the clock of one process; None: none is done."""


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
    typed: str
    """What names the study on the command line."""

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
        named = re.findall(r"/(?!layer-)([^/]*)-seed-(\d+)$", "\n".join(places), flags=re.M)
        seeds = sorted({int(seed) for _, seed in named})
        set_ups = [name for name in self.study.set_ups if any(name == found for found, _ in named)]
        command = f"layerbridge reproduce {self.typed} --pair {self.pair_name}"
        if tasks != [name for name in whole if name not in self.left_out]:
            command += f" --tasks {','.join(tasks)}"
        if set_ups != list(self.study.set_ups):
            command += f" --set-ups {','.join(set_ups)}"
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
    set_ups: Sequence[str] | None = None,
    typed: str | None = None,
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
        set_ups: by default all of the study's.
        typed: what names the study on the command line; by default its name.
        write: begin the study, or note in its folder what is added to it.

    Raises:
        ConfigError: no such pair, task or set-up, no data, or another study in the folder.
        DataError: texts to distil on that cannot be read.
    """
    need_packages()
    name, pair = study.pair(pair_name)
    if tasks is not None:
        pair = pair.model_copy(update={"only_tasks": tuple(tasks)})
    found, left_out = find_tasks(study, pair, data)
    with workshop.lock(workshop.out, "study").acquire(timeout=-1):  # processes that start together take turns
        begun = _begun(workshop.out, study, name)
        layers = begun.get("layers") or _layers(study, pair, found, workshop)
        jobs = jobs_of(study, pair, found, seeds=seeds, set_ups=set_ups, layers=layers)
        texts = texts_read(jobs, workshop.inputs)
        _check_texts(begun, texts, workshop.out)
        definition, hashes = _definition(study, name)
        chosen = study.set_up_names(set_ups) if "set_ups" in begun or not begun else tuple(study.set_ups)
        record = {
            "study": study.name,
            "pair": name,
            "definition_sha256": definition,
            "set_ups": {**begun.get("set_ups", {}), **{name: hashes[name] for name in chosen}},
            "all_set_ups": list(study.set_ups),
            "texts": {**begun.get("texts", {}), **texts},
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
        typed=typed or study.name,
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
    is_done = [workshop.is_done(job) for job in jobs]
    left = [job for job, done in zip(jobs, is_done, strict=True) if not done]
    took = [workshop.seconds(job) for job, done in zip(jobs, is_done, strict=True) if done]
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
        seconds_a_job=sum(took) / len(took) if took else None,
    )


def _begun(out: Path, study: Study, pair: str) -> dict:
    path = out / STUDY_FILE
    if not path.is_file():
        if out.is_dir() and any(not item.name.startswith(".") and item.name != LOCKS for item in out.iterdir()):
            raise ConfigError(f"{out} holds files and no {STUDY_FILE}, so it is no study. Choose another folder.")
        return {}
    begun: dict = json.loads(path.read_text(encoding="utf-8"))
    if changed := _changes(begun, study, pair):
        raise ConfigError(
            f"{out} holds study {begun['study']} with pair {begun['pair']}, and this is {study.name} with {pair}"
            f"{changed}. Name another folder with --out, or move that one away."
        )
    return begun


def _changes(begun: dict, study: Study, pair: str) -> str | None:
    """Return in which way a folder's study is another one; None: it is this one, perhaps with fewer set-ups."""
    if (begun["study"], begun["pair"]) != (study.name, pair):
        return ""
    if "set_ups" not in begun:  # of before set-ups could be added
        whole = hashlib.sha256(json.dumps(study.definition(pair), sort_keys=True).encode()).hexdigest()
        return None if begun["definition_sha256"] == whole else ", defined otherwise now"
    (rest, now), (once_rest, once) = _definition(study, pair), _definition(study, pair, by_path=True)
    if begun["definition_sha256"] not in (rest, once_rest):
        return ", defined otherwise now"
    other = [name for name, sha256 in begun["set_ups"].items() if name in now and sha256 not in (now[name], once[name])]
    return f", where set-up {', '.join(other)} is another now; a new name would do" if other else None


def _check_texts(begun: dict, texts: dict[str, str], out: Path) -> None:
    """Refuse texts that say something else than when their jobs were planned; those of other jobs are not looked at."""
    known = begun.get("texts", {})
    if other := [place for place, sha256 in texts.items() if known.get(place, sha256) != sha256]:
        raise ConfigError(
            f"The texts that {', '.join(other)} distils on say something else now than when {out} was begun. Put back "
            "what they said, name another folder with --out, or give the set-up with the new texts a new name."
        )


def _definition(study: Study, pair: str, *, by_path: bool = False) -> tuple[str, dict[str, str]]:
    """Return hashes of what decides the results: of all but the set-ups, and of each of these.

    Args:
        study: the grid.
        pair: of the study.
        by_path: files of texts to distil on are where they lie, as in folders of before their names alone counted.
    """
    rest = study.definition(pair)
    if not by_path:
        for grid in (rest, rest["pair"]):
            for part in ("tasks", "set_ups"):
                for name, keys in grid.get(part, {}).items():
                    grid[part][name] = by_name(keys)
            if "defaults" in grid:
                grid["defaults"] = by_name(grid["defaults"])
    ours, theirs = rest.pop("set_ups"), rest["pair"].pop("set_ups", {})
    return json_sha256(rest), {name: json_sha256([ours[name], theirs.get(name, {})]) for name in ours}


def _layers(study: Study, pair: Pair, tasks: dict[str, Keys], workshop: Workshop) -> list[int]:
    """Return the encoder's layer numbers, if there is a layer sweep over them; this loads the models."""
    sweep = study.sweep(pair)
    if sweep is None or not set(sweep.tasks) & set(tasks):
        return []
    first = jobs_of(study, pair, dict([next(iter(tasks.items()))]), seeds=[study.seeds[0]])[0]
    return list(workshop.bridge(first).encoder.layer_numbers)
