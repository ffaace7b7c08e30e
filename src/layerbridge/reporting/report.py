"""An analysis -> a folder: one page, its charts, its tables, and the analysis itself."""

from collections.abc import Iterable
from pathlib import Path

from layerbridge.analysis import Analysis, write_analysis
from layerbridge.atomic import replace_text
from layerbridge.errors import ConfigError
from layerbridge.reporting.page import render_report, view_report
from layerbridge.reporting.tables import to_csv, to_markdown

PAGE = "index.html"


def write_report(analysis: Analysis, folder: Path) -> Path:
    """Write the report's folder and return the page's path.

    `index.html` needs none of the other files. The same analysis gives the same bytes. Charts and tables that an
    earlier report left in the folder and that this one does not have are removed.

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
    _remove_others(folder, files)
    write_analysis(analysis, folder / "analysis.json")
    replace_text(folder / PAGE, page)
    return folder / PAGE


def _remove_others(folder: Path, kept: Iterable[Path]) -> None:
    names = set(kept)
    for pattern in ("figures/*.svg", "tables/*.csv", "tables/*.md"):
        for path in folder.glob(pattern):
            if path not in names:
                path.unlink()
