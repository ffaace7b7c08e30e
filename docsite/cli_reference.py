"""MkDocs hook: the commands in reference/cli.md, which typer writes from the commands themselves."""

import re
from typing import Any

from mkdocs.exceptions import PluginError
from typer.cli import app as typer_app
from typer.testing import CliRunner

PAGE = "reference/cli.md"
PLACE = re.compile(r"<!-- commands -->.*<!-- end -->", flags=re.S)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the commands in their place."""
    if page.file.src_uri != PAGE:
        return markdown
    if not PLACE.search(markdown):
        raise PluginError(f"{PAGE} has no place for the commands; wanted {PLACE.pattern}")
    return PLACE.sub(lambda _: commands(), markdown)


def commands() -> str:
    """Return what `typer layerbridge.cli utils docs` prints, a section a command.

    Its own list of commands cuts their help short, so here that is a list of links.
    """
    done = CliRunner().invoke(typer_app, ["layerbridge.cli", "utils", "docs", "--name", "layerbridge"])
    head, _, sections = done.output.partition("\n## ")
    if done.exit_code or not sections:
        raise PluginError(f"typer could not write {PAGE} (exit code {done.exit_code}):\n{done.output}")
    names = re.findall(r"^\* `(\w+)`: ", head.partition("**Commands**")[2], flags=re.M)
    links = ", ".join(f"[`{name}`](#layerbridge-{name})" for name in names)
    return f"Commands: {links}.\n\n## {sections}"
