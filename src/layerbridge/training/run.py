"""The run folder: recipe as run, environment, record, metrics, checkpoint. `docs/formats.md` lists it."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from layerbridge import __version__
from layerbridge.atomic import replace_text
from layerbridge.config import Recipe, load_recipe
from layerbridge.errors import ConfigError
from layerbridge.results import HOW_IT_RUNS

RECIPE, RECORD, ENVIRONMENT = "recipe.yaml", "run.json", "environment.json"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "peft")


def open_run(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Make the run folder, or check that the one that is there is this recipe's, to be continued.

    A run that goes on may do so in another way (`HOW_IT_RUNS`) and with other plans for its evaluation; its recipe.yaml
    is then the new one.

    Raises:
        ConfigError: the folder holds another recipe's run, a finished run, or something else.
    """
    if overwrite and (folder / RECIPE).is_file():
        _throw_away(folder)
    if (folder / RECIPE).is_file() and not any(folder.rglob("checkpoint*/*")):
        _throw_away(folder)  # nothing was learned yet: a first try that failed, not a run to be kept
    if (folder / RECIPE).is_file():
        _check_same(folder, recipe)
        if read_record(folder).get("status") == "finished":
            raise ConfigError(
                f"Run {folder} is finished. Evaluate it with `layerbridge evaluate {folder}`, give the recipe another "
                "name, or train it anew with --overwrite."
            )
        _write_recipe(folder, recipe)
        return
    # A hidden file is one that a kill left half written.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} holds files and no {RECIPE}, so it is no run. Choose another folder or name.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_recipe(folder, recipe)
    write_json(folder / ENVIRONMENT, environment())


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    replace_text(folder / RECIPE, text)


def read_record(folder: Path) -> dict[str, Any]:
    """Return run.json, or nothing if the run has not got that far."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, data: Any) -> None:
    """Write JSON in one step."""
    replace_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """Return versions and machine, without anything that names the machine or its user."""
    import torch

    return {
        "layerbridge": __version__,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _throw_away(folder: Path) -> None:
    """Delete a folder; a kill in between leaves a hidden one, and not half of this one."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.thrown-away")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _check_same(folder: Path, recipe: Recipe) -> None:
    there, wanted = load_recipe(folder / RECIPE).model_dump(mode="json"), recipe.model_dump(mode="json")
    for data in (there, wanted):  # where rows and texts lie may change; that they are the same is checked by their hash
        data["task"] = {key: value for key, value in data["task"].items() if key not in ("data", "train_data")}
        data["training"] = {key: value for key, value in data["training"].items() if key not in HOW_IT_RUNS}
        if data["training"]["self_distillation"] is not None:
            del data["training"]["self_distillation"]["texts"]
        del data["evaluation"]
    different = sorted(key for key in wanted if there[key] != wanted[key])
    if different:
        raise ConfigError(
            f"Run {folder} was begun with another recipe: {', '.join(different)} differ. Give this run another name, "
            "or replace that one with --overwrite."
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
