"""What a study is: a grid of tasks, set-ups, seeds and pairs of models, each cell a recipe. No data and no model here.

A cell's recipe is put together from the study's parts, the later ones winning key by key: `defaults`, `tasks[task]`,
`set_ups[set_up]`, then the same three of the pair.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from layerbridge.config import EMBEDDED, FrozenConfig, Recipe, TranslatorConfig, build_config, parse_yaml, resolve_paths
from layerbridge.errors import ConfigError, unknown_name

Baseline = Literal["llm_alone", "translate_then_llm", "linear_probe_last_layer", "linear_probe_fused"]

TASK_PLACE = "{task}"
"""In `training.self_distillation.texts` of a study: the task's name, for a file of texts for each task."""

Keys = dict[str, Any]
"""Recipe keys, nested as in a recipe."""


class LayerSweep(FrozenConfig):
    """Each encoder layer alone (fusion `single_layer`), trained as `reference` is."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)


class Grid(FrozenConfig):
    """Recipe keys by task and by set-up."""

    defaults: Keys = Field(default_factory=dict)
    """Of every cell."""
    tasks: dict[str, Keys] = Field(default_factory=dict)
    set_ups: dict[str, Keys] = Field(default_factory=dict)


class Pair(Grid):
    """An encoder and an LLM, and what has to be otherwise with them."""

    title: str
    only_tasks: tuple[str, ...] | None = None
    """By default all of the study's and of the pair's own."""
    main: str | None = None
    """The task whose claim comes first; by default the study's."""
    layer_sweep: LayerSweep | None = None
    """By default the study's."""


class Study(Grid):
    """A grid of runs and what they are compared with."""

    name: str
    title: str
    seeds: tuple[int, ...] = Field(min_length=1)
    reference: str
    """The set-up that differences are to."""
    main: str
    """The task whose claim comes first."""
    baselines: tuple[Baseline, ...] = ()
    translator: TranslatorConfig | None = None
    """Of `translate_then_llm`, which is left out without one."""
    layer_sweep: LayerSweep | None = None
    stand_ins: dict[str, Keys] = Field(default_factory=dict)
    """Recipe keys of a task that stands in for another one whose files are not there; they win over all others."""
    pairs: dict[str, Pair] = Field(min_length=1)
    """The first is the one that is taken if none is named."""
    keep_checkpoints: bool = False
    """Keep what a run could be resumed from also once it is finished; it is several times the checkpoint."""

    @model_validator(mode="after")
    def _check_names(self) -> "Study":
        if self.reference not in self.set_ups:
            raise ValueError(f"reference {self.reference!r} is none of set_ups: {', '.join(self.set_ups)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has one twice: {list(self.seeds)}")
        for name in (
            *self.tasks,
            *self.set_ups,
            *self.pairs,
            *(task for pair in self.pairs.values() for task in pair.tasks),
        ):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is a name of a folder too; wanted letters, digits, '_', '-' and '.' alone")
        for name, pair in self.pairs.items():
            unknown = set(pair.set_ups) - set(self.set_ups)
            if unknown:
                raise ValueError(f"pairs.{name}.set_ups names {', '.join(sorted(unknown))}, which set_ups does not")
        return self

    def pair(self, name: str | None) -> tuple[str, Pair]:
        """Return a pair and its name; the first if none is named.

        Raises:
            ConfigError: no such pair.
        """
        chosen = name or next(iter(self.pairs))
        if chosen not in self.pairs:
            raise ConfigError(f"Study {self.name}: {unknown_name('pair', chosen, self.pairs)}")
        return chosen, self.pairs[chosen]

    def sweep(self, pair: Pair) -> LayerSweep | None:
        """Return the layer sweep with this pair, if there is one."""
        return pair.layer_sweep or self.layer_sweep

    def definition(self, pair: str) -> Keys:
        """Return what decides a study's results with a pair; seeds and set-ups may be more from call to call.

        Files are named in it by where they lie.
        """
        data = self.model_dump(mode="json", exclude={"seeds", "title", "main", "pairs"}, exclude_defaults=True)
        chosen = self.pairs[pair].model_dump(
            mode="json", exclude={"title", "main", "only_tasks"}, exclude_defaults=True
        )
        return data | {"pair": chosen}

    def task_names(self, pair: Pair) -> tuple[str, ...]:
        """Return the tasks of the study with this pair, in order."""
        names = tuple(dict.fromkeys((*self.tasks, *pair.tasks)))
        for name in pair.only_tasks or ():
            if name not in names:
                raise ConfigError(f"Study {self.name}: {unknown_name('task', name, names)}")
        return names if pair.only_tasks is None else tuple(name for name in names if name in pair.only_tasks)

    def set_up_names(self, wanted: Iterable[str] | None) -> tuple[str, ...]:
        """Return the set-ups that are wanted, by default all, in the study's order.

        Raises:
            ConfigError: no such set-up.
        """
        chosen = set(self.set_ups if wanted is None else wanted)
        for name in sorted(chosen):
            if name not in self.set_ups:
                raise ConfigError(f"Study {self.name}: {unknown_name('set-up', name, self.set_ups)}")
        return tuple(name for name in self.set_ups if name in chosen)

    def uses_embedded(self, pair: Pair) -> bool:
        """Return whether a pair is the embedded one, so small that each core can have a process of its own."""
        recipe = self.recipe(pair, "headlines", self.reference, 0, name="probe")
        return recipe.encoder.name == recipe.llm.name == EMBEDDED

    def recipe(self, pair: Pair, task: str, set_up: str, seed: int, *, name: str, extra: Iterable[Keys] = ()) -> Recipe:
        """Return one cell's recipe.

        Args:
            pair: of `pairs`.
            task: of `task_names`.
            set_up: of `set_ups`.
            seed: of the training.
            name: of the run.
            extra: keys that win over all others.

        Raises:
            ConfigError: the keys put together are not a recipe.
        """
        data: Keys = {}
        for part in (
            self.defaults,
            {"task": {"name": task}},
            self.tasks.get(task, {}),
            self.set_ups[set_up],
            pair.defaults,
            pair.tasks.get(task, {}),
            pair.set_ups.get(set_up, {}),
            *extra,
            {"name": name, "training": {"seed": seed}},
        ):
            data = merge(data, part)
        if texts := texts_of(data):
            of_task = {"self_distillation": {"texts": texts.replace(TASK_PLACE, task)}}
            data = merge(data, {"training": of_task})
        return build_config(Recipe, data, where=f"Study {self.name}, task {task}, set-up {set_up}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work: it is done whole, by one process, and leaves a folder."""

    kind: Literal["bridge", "llm_alone", "translate_then_llm", "linear_probe_last_layer"]
    task: str
    """The study's name for it; the task itself may be a stand-in."""
    name: str
    recipe: Recipe
    """Of a baseline: of the reference set-up, for its task, prompt, rows and limits."""

    @property
    def place(self) -> str:
        """Its folder within the study's."""
        return f"{self.task}/{self.name}"


def jobs_of(
    study: Study,
    pair: Pair,
    tasks: Mapping[str, Keys],
    *,
    seeds: Iterable[int] | None = None,
    set_ups: Iterable[str] | None = None,
    layers: Iterable[int] = (),
) -> list[Job]:
    """Return all work of a study with a pair, task by task, the main grid before sweep and baselines.

    Args:
        study: the grid.
        pair: of the study.
        tasks: task name -> recipe keys that say where its data is; tasks left out are not in it.
        seeds: by default the study's.
        set_ups: by default all of the study's.
        layers: the encoder's layer numbers, for the layer sweep.
    """
    seeds, layers = tuple(study.seeds if seeds is None else seeds), tuple(layers)
    chosen = study.set_up_names(set_ups)
    jobs = []
    for task, keys in tasks.items():
        for seed in seeds:
            for set_up in chosen:
                name = f"{set_up}-seed-{seed}"
                recipe = study.recipe(pair, task, set_up, seed, name=name, extra=[keys])
                jobs.append(Job(kind="bridge", task=task, name=name, recipe=recipe))
        jobs += _sweep(study, pair, task, keys, layers)
        jobs += _baselines(study, pair, task, keys, seeds)
    return jobs


def _sweep(study: Study, pair: Pair, task: str, keys: Keys, layers: Iterable[int]) -> list[Job]:
    sweep = study.sweep(pair)
    if sweep is None or task not in sweep.tasks:
        return []
    jobs = []
    for layer in layers:
        for seed in sweep.seeds:
            name = f"layer-{layer}" + (f"-seed-{seed}" if len(sweep.seeds) > 1 else "")
            one = {"fusion": {"name": "single_layer", "layer": layer}}
            recipe = study.recipe(pair, task, study.reference, seed, name=name, extra=[keys, one])
            if "score" in recipe.evaluation.methods:  # one way to read answers is enough to compare layers
                evaluation = recipe.evaluation.model_copy(update={"methods": ("score",)})
                recipe = recipe.model_copy(update={"evaluation": evaluation})
            jobs.append(Job(kind="bridge", task=task, name=name, recipe=recipe))
    return jobs


def _baselines(study: Study, pair: Pair, task: str, keys: Keys, seeds: Iterable[int]) -> list[Job]:
    jobs = []
    for kind in study.baselines:
        if kind == "linear_probe_fused" or (kind == "translate_then_llm" and study.translator is None):
            continue  # the first is done with each trained bridge
        recipe = study.recipe(pair, task, study.reference, study.seeds[0], name=kind, extra=[keys])
        if kind == "linear_probe_last_layer" and recipe.task.rows_seed is None:
            for seed in seeds:  # other rows with each seed; otherwise all seeds give the same probe
                name = f"{kind}-seed-{seed}"
                recipe = study.recipe(pair, task, study.reference, seed, name=name, extra=[keys])
                jobs.append(Job(kind=kind, task=task, name=name, recipe=recipe))
        else:
            jobs.append(Job(kind=kind, task=task, name=kind, recipe=recipe))
    return jobs


def merge(first: Keys, second: Mapping[str, Any]) -> Keys:
    """Return `first` with `second`'s keys over it, key by key; a part of another name replaces the whole part."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and _one_name(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = dict(value) if isinstance(value, Mapping) else value
    return result


def _one_name(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return "name" not in first or "name" not in second or first["name"] == second["name"]


def load_study(name: str) -> Study:
    """Read a study: the name of one in the package, or the path of a YAML file.

    Raises:
        ConfigError: no such study, or not one.
    """
    folder = resources.files("layerbridge").joinpath("studies")
    built_in = sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))
    if name in built_in:
        text, where = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"study {name}"
    elif Path(name).is_file():
        text, where = Path(name).read_text(encoding="utf-8"), name
    else:
        raise ConfigError(unknown_name("study", name, built_in) + " Or give the path of a study's YAML file.")
    data = parse_yaml(text, where=where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where} holds {type(data).__name__}, wanted a mapping of the study's keys.")
    data.setdefault("name", Path(name).stem)
    study = build_config(Study, data, where=where)
    for grid in (study, *study.pairs.values()):
        for keys in (grid.defaults, *grid.tasks.values(), *grid.set_ups.values()):
            resolve_paths(keys, Path(name).parent)
            if TASK_PLACE in (texts := texts_of(keys)):
                keys["training"]["self_distillation"]["texts"] = str((Path(name).parent / texts).absolute())
    return study


def texts_of(keys: Keys) -> str:
    """Return which file self-distillation is to read before the task; nothing, if none is named."""
    training = keys.get("training")
    distillation = training.get("self_distillation") if isinstance(training, Mapping) else None
    texts = distillation.get("texts") if isinstance(distillation, Mapping) else None
    return texts if isinstance(texts, str) else ""
