"""`layerbridge select`: finished dev studies in, the choice and its log out."""

from pathlib import Path
from typing import Annotated

import typer

from layerbridge.cli.options import shown


def select(
    folders: Annotated[list[Path], typer.Argument(help="Folders of studies that were evaluated on dev.")],
    out: Annotated[Path, typer.Option(help="Folder of the log.")] = Path("selection"),
    task: Annotated[
        str | None,
        typer.Option(help="Task that decides; by default the only one with unseen languages.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Set-up that the others are compared with.", show_default=False)
    ] = None,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", help="Folder whose results are reported: none of its splits may choose. May be repeated."
        ),
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Rank although a study is not finished.")] = False,
) -> None:
    """Choose a set-up by its mean over unseen languages on dev, and write down on what the choice rests.

    Results of a test split are refused. Once what is reported is there, the same command with --report checks that
    none of it chose, and adds that to the log; what was chosen, and when, stays.

    Example: `layerbridge select runs/ideas-embedded`
    """
    import shlex

    from layerbridge.studies import selection_log
    from layerbridge.studies.selection import select as choose

    options = [
        part for flag, value in (("--task", task), ("--reference", reference)) if value for part in (flag, value)
    ]
    options += [part for path in reports or () for part in ("--report", shown(path))]
    options += ["--unfinished"] if unfinished else []
    found = choose(
        folders,
        task=task,
        reference=reference,
        reports=reports or (),
        unfinished=unfinished,
        command=shlex.join(["layerbridge", "select", *map(shown, folders), *options]),
    )
    typer.echo(selection_log.to_markdown(selection_log.write_selection(found, out)))
    typer.echo(f"The log is {out / selection_log.SELECTION_FILE}.")
