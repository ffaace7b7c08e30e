"""`layerbridge tasks`: which tasks there are, what one is, and whether its data can be read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from layerbridge.data.tasks import SplitReport, Task

tasks = typer.Typer(help="List the tasks, show one, or check that its data can be read.", no_args_is_help=True)

DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Local folder or file in the hub set's schema, instead of the hub."),
]


@tasks.command("ls")
def list_tasks() -> None:
    """List the tasks that come with layerbridge.

    Example: `layerbridge tasks ls`
    """
    from layerbridge.data.tasks import TASKS

    table = _table("task", "languages", "splits", "answers", "version")
    for build in TASKS.values():
        task = build()
        number = str(len(task.languages))
        table.add_row(task.name, number, " ".join(task.splits), _answers(task), str(task.version))
    _print(table)
    _print("`layerbridge tasks show NAME` says more; docs/formats.md says how to bring a task of your own.")


@tasks.command("show")
def show_task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task of `layerbridge tasks ls`.")],
    data: DataOption = None,
) -> None:
    """Show all facts of a task; with `--data` also the rows that are there.

    Example: `layerbridge tasks show sib200 --data ~/sib200`
    """
    from layerbridge.config import BuiltinTaskConfig
    from layerbridge.data.tasks import TASKS, build_task
    from layerbridge.data.tasks.source import NoSource
    from layerbridge.languages import describe

    task = build_task(BuiltinTaskConfig(name=name, data=data))
    is_ours = not isinstance(TASKS[task.name]().source, NoSource)
    facts = {
        "task": task.name,
        "title": task.title,
        "version": str(task.version),
        "citation": task.citation,
        "licence": task.licence,
        "hub set": task.hub or f"none: {'the data is in the package' if is_ours else 'name a folder with --data'}",
        "prompt": repr(task.encoder_prompt),
        "columns": ", ".join((*task.fields, task.label_column)),
        "answers": _answers(task),
    }
    for split in task.splits:
        codes = task.languages_of(split)
        same = split != "test" and codes == task.languages
        listed = "as test" if same else ", ".join(map(describe, codes))
        facts[split] = f"{len(codes)} languages: {listed}" if len(codes) > 1 else listed
    for key, value in facts.items():
        _print(f"{key:<9} {value}")
    if data is not None:
        _print_reports(task.validate())


@tasks.command("validate")
def validate_task(
    task: Annotated[str, typer.Argument(metavar="RECIPE_OR_NAME", help="A recipe file, or a task's name.")],
    data: DataOption = None,
) -> None:
    """Read the data of a recipe or a task, and say by language what is there and what is wrong.

    Exit code 1 if a file is wrong, or nothing could be read.

    Example: `layerbridge tasks validate recipes/own_data.yaml`

    Example: `layerbridge tasks validate sib200 --data ~/sib200`
    """
    reports = _task_of(task, data).validate()
    _print_reports(reports)
    if any(report.state == "wrong" for report in reports) or not any(report.state == "ok" for report in reports):
        raise typer.Exit(1)


def _task_of(recipe_or_name: str, data: str | None) -> "Task":
    from layerbridge.config import BuiltinTaskConfig, OwnTaskConfig, load_recipe
    from layerbridge.data.tasks import build_task
    from layerbridge.errors import ConfigError

    if Path(recipe_or_name).suffix not in (".yaml", ".yml") and not Path(recipe_or_name).is_file():
        return build_task(BuiltinTaskConfig(name=recipe_or_name, data=data))
    config = load_recipe(recipe_or_name).task
    if data is not None and isinstance(config, OwnTaskConfig):
        raise ConfigError(f"--data is for tasks by name, and {recipe_or_name} names its own files. Drop --data.")
    return build_task(config.model_copy(update={"data": data}) if data is not None else config)


def _answers(task: "Task") -> str:
    return "free text" if task.answers is None else " / ".join(task.answers)


def _print_reports(reports: "Sequence[SplitReport]") -> None:
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for report in reports:
        if report.state == "ok":
            answers = ", ".join(f"{answer} {count}" for answer, count in report.answers.items())
            repeated = str(report.in_train) if report.split != "train" else ""
            alike.setdefault((report.split, str(report.rows), answers, repeated), []).append(report.language)
    table = _table("split", "languages", "rows each", "answers", "also in train")
    for (split, rows, answers, repeated), codes in alike.items():
        table.add_row(split, " ".join(codes), rows, answers, repeated)
    if table.row_count:
        _print(table)
    for report in reports:
        if report.state == "wrong":
            _print(f"WRONG {report.split} {report.language}: {report.problem}")
    missing = [report for report in reports if report.state == "missing"]
    for split in dict.fromkeys(report.split for report in missing):
        codes = [report.language for report in missing if report.split == split]
        _print(f"MISSING {split}: {len(codes)} of the task's languages ({' '.join(codes)})")
    if missing and len(missing) == len(reports):
        _print(missing[0].problem)
    counts = [sum(report.state == state for report in reports) for state in ("ok", "wrong", "missing")]
    _print("{} readable, {} wrong, {} missing.".format(*counts))


def _table(*columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows each", "also in train") else "left")
    return table


def _print(what: "Table | str") -> None:
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(what, soft_wrap=isinstance(what, str))
