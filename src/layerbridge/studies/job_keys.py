"""What a finished job must agree with, as one hash: its recipe, its rows, and the packages that can change a score.

Options that come to recipes are left out of keys at their defaults (`results.without_later`), so what was done before
them stays done. Those of `WRITTEN_OUT` came while keys had every option in them: they stay in, and jobs of before them
are known by the keys of their time.
"""

from pathlib import Path
from typing import Any

from layerbridge.evaluation.predict import installed_versions
from layerbridge.results import HOW_IT_RUNS, json_sha256, without_later
from layerbridge.studies.inputs import InputCache
from layerbridge.studies.study import Job, Keys, merge

WRITTEN_OUT: tuple[Keys, ...] = (
    {
        "boundary": "zeros",
        "task": {"rows_seed": None},
        "training": {"fusion_learning_rate": None, "group_by_length": False, "feature_precision": "encoder"},
    },
    {
        "pooling": {"name": "none", "size": None},
        "training": {"self_distillation": None, "noise_agreement": None},
    },
    {"training": {"state_noise": 0.0}},
)
"""Later options that keys have at their defaults too, in the order in which they came. The list is closed: a new option
belongs in the tables of `layerbridge.results` alone."""

WRITTEN_OUT_OF_FUSIONS: dict[str, Keys] = {
    "global_softmax": {"weights": "softmax", "heads": 1},
    "transformer_softmax": {"weights": "softmax", "temperature": 1.0},
    "attention_pool": {"weights": "softmax", "temperature": 1.0, "heads": 1},
}
"""Fusion -> the same of its own; they came with the second of `WRITTEN_OUT`."""


def job_keys(job: Job, inputs: InputCache, *, by_path: bool = False) -> tuple[str, ...]:
    """Return a job's key, and after it the keys that earlier versions wrote for the same job.

    Args:
        job: of a study.
        inputs: reads its rows and texts.
        by_path: a file of texts is where it lies, as in keys of before they held what it says.

    Raises:
        DataError: rows or texts that cannot be read.
    """
    read, recipe = inputs.of(job.recipe), job.recipe.model_dump(mode="json")
    texts = inputs.texts(job.recipe)
    if texts is not None and not by_path:
        distillation = recipe["training"]["self_distillation"]
        distillation["texts"] = {"name": Path(distillation["texts"]).name, "sha256": texts.sha256}
    recipe["task"] = {k: v for k, v in recipe["task"].items() if k not in ("data", "train_data")}
    recipe["training"] = {k: v for k, v in recipe["training"].items() if k not in HOW_IT_RUNS}
    rows = [read.train.sha256, read.dev.sha256, {code: split.sha256 for code, split in read.splits.items()}]
    packages = installed_versions().model_dump()
    known: dict[str, Any] = without_later(recipe)
    keys = []
    for number, defaults in enumerate(WRITTEN_OUT):
        known = merge(defaults, known)
        if number == 1:
            known["fusion"] = WRITTEN_OUT_OF_FUSIONS.get(known["fusion"]["name"], {}) | known["fusion"]
        keys.append(json_sha256([job.kind, known, rows, packages]))
    return tuple(reversed(keys))
