"""`layerbridge train`."""

import os
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="Override a recipe key, such as training.seed=1. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/NAME.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option(help="Begin anew in a folder that holds a run.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where encoder features are kept, for all epochs and other runs.", show_default="none kept"),
    ] = None,
    cache_limit: Annotated[
        float | None, typer.Option(min=0, help="Largest size of that folder, in GB.", show_default="20")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a bridge by a recipe. A run that was cut off goes on from its last checkpoint.

    Example: `layerbridge train recipes/sib200.yaml -s fusion=global_softmax -s training.seed=1`
    """
    from layerbridge.config import load_recipe
    from layerbridge.errors import ConfigError

    if cache is None and cache_limit is not None:
        raise ConfigError(
            "--cache-limit is the largest size of a folder of encoder features, and none is kept. Add --cache DIR, or "
            "leave out --cache-limit."
        )
    loaded = load_recipe(recipe, overrides or ())
    folder = out or Path("runs") / loaded.name
    from layerbridge.training.train import train as run

    limit = int((20 if cache_limit is None else cache_limit) * 1e9)
    run(loaded, folder, overwrite=overwrite, progress=not quiet, cache=cache, cache_bytes=limit)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, if it did
        typer.echo(f"Run written to {folder}. Evaluate it: layerbridge evaluate {folder}")
