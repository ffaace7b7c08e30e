"""`layerbridge report`: runs in, one page out."""

from pathlib import Path
from typing import Annotated

import typer

from layerbridge.cli.options import shown


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, evaluation folders or results.json files; or one analysis.json.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    title: Annotated[str | None, typer.Option(help="Headline of the page.", show_default=False)] = None,
    reference: Annotated[
        str | None, typer.Option(help="Set-up that the others are compared with.", show_default=False)
    ] = None,
    main: Annotated[str | None, typer.Option(help="Task of the first claim.", show_default=False)] = None,
) -> None:
    """Compare runs with statistics and write one page with its charts and tables, from their results alone.

    Example: `layerbridge report runs/last-layer-* runs/transformer-softmax-* --out report`
    """
    import shlex

    from layerbridge.analysis import read_analysis
    from layerbridge.errors import ConfigError
    from layerbridge.reporting.report import write_report

    if len(runs) == 1 and _is_analysis(runs[0]):
        if reference or main:
            raise ConfigError(
                f"{runs[0]} is an analysis already; --reference and --main need the runs that it was made of."
            )
        analysis = read_analysis(runs[0])
        analysis = analysis.model_copy(update={"title": title}) if title else analysis
    else:
        made = [run for run in runs if _is_analysis(run)]
        if made:
            raise ConfigError(
                f"{made[0]} is an analysis already and {len(runs)} paths were given. Give it alone, or give runs."
            )
        from layerbridge.evaluation.analyse import analyse

        options = {"--reference": reference, "--main": main, "--title": title}
        chosen = [part for flag, value in options.items() if value for part in (flag, value)]
        command = shlex.join(["layerbridge", "report", *map(shown, runs), *chosen])
        analysis = analyse(runs, title=title, reference=reference, main=main, command=command)
    typer.echo(write_report(analysis, out))


def _is_analysis(path: Path) -> bool:
    return path.suffix == ".json" and path.name != "results.json"
