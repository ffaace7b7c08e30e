"""The command line: arguments in, one library call, a table out. Nothing heavy is imported until a command runs."""

import sys

import typer

from layerbridge.cli.annotate import annotate
from layerbridge.cli.compare import compare
from layerbridge.cli.demo import demo
from layerbridge.cli.evaluate import evaluate
from layerbridge.cli.generate import generate
from layerbridge.cli.harness import harness
from layerbridge.cli.inspect import inspect
from layerbridge.cli.report import report
from layerbridge.cli.reproduce import reproduce
from layerbridge.cli.select import select
from layerbridge.cli.serve import serve
from layerbridge.cli.tasks import tasks
from layerbridge.cli.train import train
from layerbridge.errors import LayerbridgeError

app = typer.Typer(
    name="layerbridge",
    help="Attach a frozen multilingual encoder to a frozen English LLM, trained on English only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, train, evaluate, compare, generate, inspect, harness, report, reproduce, select, serve, annotate):
    app.command()(command)
app.add_typer(tasks, name="tasks")


def main() -> None:
    """Run the command line; what a user can mend is one message on stderr and exit code 2."""
    try:
        app()
    except LayerbridgeError as error:
        print(f"layerbridge: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
