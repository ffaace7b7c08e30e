"""An analysis -> a folder: one page, its charts, its tables, and the analysis itself."""

import re
from collections.abc import Iterable
from pathlib import Path

from layerbridge.analysis import Analysis, write_analysis
from layerbridge.atomic import replace_text
from layerbridge.errors import ConfigError
from layerbridge.reporting.page import render_report, view_report
from layerbridge.reporting.tables import to_csv, to_markdown

PAGE = "index.html"
FILES = "files.txt"
"""Which figures and tables a report wrote: a later one may remove those, and nothing else."""


def write_report(analysis: Analysis, folder: Path) -> Path:
    """Write the report's folder and return the page's path.

    `index.html` needs none of the other files. The same analysis gives the same bytes. Charts and tables that an
    earlier report wrote in the folder, by its list of them, and that this one does not have are removed.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed, or `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The report's folder {folder} is a file. Name another folder.")
    view = view_report(analysis)
    page = render_report(view)
    files = {folder / "figures" / f"{figure.key}.svg": figure.svg for figure in view.figures}
    for table in view.tables:
        files[folder / "tables" / f"{table.key}.csv"] = to_csv(table)
        files[folder / "tables" / f"{table.key}.md"] = to_markdown(table)
    for path, text in files.items():
        replace_text(path, text)
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    _remove_earlier(folder, names)
    replace_text(folder / FILES, "".join(f"{name}\n" for name in names))
    write_analysis(analysis, folder / "analysis.json")
    replace_text(folder / PAGE, page)
    return folder / PAGE


def _remove_earlier(folder: Path, kept: Iterable[str]) -> None:
    """Remove what the list of an earlier report names and `kept` does not."""
    listed = folder / FILES
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    for name in set(names) - set(kept):
        if re.fullmatch(r"(figures/[\w.-]+\.svg|tables/[\w.-]+\.(csv|md))", name, flags=re.ASCII):
            (folder / name).unlink(missing_ok=True)
