"""`layerbridge compare`: runs in, one table out."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

FORMATS = ("table", "markdown", "csv")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, evaluation folders or results.json files.")],
    method: Annotated[
        str | None, typer.Option(help="score or generate; by default score, if every run has it.")
    ] = None,
    format: Annotated[str, typer.Option(help="table, markdown or csv.")] = "table",
    task: Annotated[
        str | None, typer.Option(help="Which evaluation of a run, as its folder is named: xnli-test.")
    ] = None,
) -> None:
    """Put the accuracies of several runs side by side; runs that differ in the seed alone become one column.

    Example: `layerbridge compare runs/last-layer runs/transformer-softmax --format markdown`
    """
    from rich.console import Console

    from layerbridge.errors import ConfigError, unknown_name
    from layerbridge.evaluation.compare import comparison
    from layerbridge.evaluation.render import render, to_csv, to_markdown
    from layerbridge.evaluation.run_folder import find_results
    from layerbridge.results import Method, read_results

    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS))
    if method is not None and method not in get_args(Method):
        raise ConfigError(unknown_name("method", method, get_args(Method)))
    results = [read_results(find_results(run, task)) for run in runs]
    table = comparison(results, cast(Method | None, method))
    if format == "table":
        Console().print(render(table))
    else:
        typer.echo(to_markdown(table) if format == "markdown" else to_csv(table), nl=False)
