"""`layerbridge demo`: the three hand-overs of the paper, trained on English, answering in languages never seen."""

from pathlib import Path
from typing import Annotated

import typer

FUSIONS = ("last_layer", "global_softmax", "transformer_softmax")


def demo(
    out: Annotated[Path, typer.Option(help="Where the three runs go; earlier ones there are replaced.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer updates a run; by default the recipe's.")] = None,
    languages: Annotated[
        str | None, typer.Option(help="Codes of the languages to answer in, such as si,ta; by default all 17.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of rows, order and initial weights.")] = 0,
) -> None:
    """Train the paper's three hand-overs on English headlines and compare them in 16 other languages.

    No download: the encoder, the LLM and the headlines are in the package. Example: `layerbridge demo`
    """
    from importlib import resources

    from rich.console import Console

    from layerbridge.config import load_recipe
    from layerbridge.evaluation.compare import comparison
    from layerbridge.evaluation.predict import evaluate_run
    from layerbridge.evaluation.render import render
    from layerbridge.training.train import train

    console = Console()
    recipe_file = resources.files("layerbridge").joinpath("embedded", "demo.yaml")
    results = []
    for fusion in FUSIONS:
        overrides = [f"name={fusion}", f"fusion={fusion}", f"training.seed={seed}"]
        if steps is not None:
            overrides.append(f"training.max_steps={steps}")
        if languages is not None:
            overrides.append(f"evaluation.languages=[{languages}]")
        recipe = load_recipe(str(recipe_file), overrides)
        console.rule(f"{fusion}: training on English")
        train(recipe, out / fusion, overwrite=True)
        results.append(evaluate_run(out / fusion, progress=True))
    table = comparison(results)
    console.print(render(table))
    console.print(
        "Accuracy in percent by label scoring; only English was seen in training. This is a smoke benchmark: it shows "
        "that the chain works, not how good it is."
    )
    console.print(f"Runs, predictions and results are in {out}")
