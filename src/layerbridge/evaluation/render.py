"""A comparison, or one run's results, as a rich table, Markdown or CSV. All in percent, averages last."""

import csv
import io
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from layerbridge.evaluation.compare import AVERAGE, ZERO_SHOT_AVERAGE, Cell, Comparison
from layerbridge.results import Averages, Results

NOTHING = "-"
LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # narrow: 80 columns


def render(table: Comparison) -> Table:
    """Return a comparison for the terminal; languages seen in training are marked with a star."""
    drawn = Table(title=escape(table.title), caption=escape(_caption(table)), caption_justify="left", **LOOK)
    headings = _headings(table)
    drawn.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        drawn.add_column(escape(_two_lines(heading)), justify="right", overflow="fold")
    is_last_language = False
    for row, cells in zip(table.rows, _text_rows(table), strict=True):
        if row.is_average and is_last_language:
            drawn.add_section()
        drawn.add_row(*map(escape, cells))
        is_last_language = not row.is_average
    return drawn


def to_markdown(table: Comparison) -> str:
    """Return a comparison as a Markdown table under its title, with its notes below."""
    headings = _headings(table)
    lines = [
        f"**{table.title}**",
        "",
        _markdown_row(headings),
        _markdown_row(["---"] + ["---:"] * (len(headings) - 1)),
        *(_markdown_row(cells) for cells in _text_rows(table)),
    ]
    notes = [f"- {_escaped(note)}" for note in _caption(table).splitlines()]
    return "\n".join([*lines, "", *notes] if notes else lines) + "\n"


def to_csv(table: Comparison) -> str:
    """Return a comparison as CSV: percentages to four places; spread, seeds and unreadable have columns."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = ("accuracy %", "standard deviation", "seeds", "unreadable %")
    writer.writerow(
        [
            "language",
            "seen",
            "n",
            "majority %",
            *(f"{column.name}: {part}" for column in table.columns for part in parts),
        ]
    )
    for row in table.rows:
        cells: list[object] = []
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell is None:
                cells += ["", "", "", ""]
            else:
                spread = "" if cell.deviation is None else f"{100 * cell.deviation:.4f}"
                cells += [f"{100 * cell.mean:.4f}", spread, column.num_seeds, f"{100 * cell.unreadable:.4f}"]
        seen = "" if row.seen is None else str(row.seen).lower()
        writer.writerow([row.name, seen, row.n, f"{100 * row.majority:.4f}", *cells])
    return file.getvalue()


def render_results(results: Results) -> Table:
    """Return one run's results for the terminal: every method, what was unreadable, and what was cut."""
    origin = results.provenance
    limit = f", first {origin.limit} rows" if origin.limit else ""
    title = f"{origin.run} on {origin.task} (version {origin.task_version}), {origin.split}{limit}: accuracy %"
    drawn = Table(title=escape(title), **LOOK)
    drawn.add_column("language", no_wrap=True)
    headings = ["n", "majority"]
    for method in origin.methods:
        headings += [method, "unreadable"]
    for heading in [*headings, "cut"]:
        drawn.add_column(heading, justify="right")
    seen = set(origin.languages_seen or ())
    for code in sorted(results.languages, key=lambda code: (code not in seen, code)):
        score = results.languages[code]
        cells = [_mark(code, code in seen), str(score.n), _percent(score.majority_accuracy)]
        for method in origin.methods:
            cells += [_percent(score.accuracy(method)), str(score.methods[method].unreadable)]
        drawn.add_row(*cells, str(score.truncated))
    drawn.add_section()
    parts: list[tuple[str, Callable[[Averages], float | None]]] = [
        (AVERAGE, lambda averages: averages.all),
        (ZERO_SHOT_AVERAGE, lambda averages: averages.zero_shot),
    ]
    for name, part in parts:
        if part(results.majority_averages) is not None:
            cells = [name, "", _percent(part(results.majority_averages))]
            for method in origin.methods:
                cells += [_percent(part(results.averages(method))), ""]
            drawn.add_row(*cells, "")
    drawn.caption = "* seen in training. " if seen else ""
    drawn.caption += f"cut: texts longer than {origin.max_source_tokens} encoder tokens."
    return drawn


def _two_lines(heading: str) -> str:
    """Break a long fusion's name, so that three of them fit 80 columns."""
    return heading.replace("_", "_\n", 1) if len(heading) > 12 else heading


def _headings(table: Comparison) -> list[str]:
    headings = ["language", "n", "majority"]
    for column in table.columns:
        headings.append(column.name + (f" ({column.num_seeds} seeds)" if column.num_seeds > 1 else ""))
        if table.method == "generate":
            headings.append("unreadable")
    return headings


def _text_rows(table: Comparison) -> list[list[str]]:
    rows = []
    for row in table.rows:
        cells = [_mark(row.name, bool(row.seen)), str(row.n), _percent(row.majority)]
        for cell in row.cells:
            cells.append(_accuracy(cell))
            if table.method == "generate":
                cells.append(_percent(None if cell is None else cell.unreadable))
        rows.append(cells)
    return rows


def _caption(table: Comparison) -> str:
    star = ["* seen in training."] if any(row.seen for row in table.rows) else []
    spread = ["± is the sample standard deviation over seeds."] if any(c.num_seeds > 1 for c in table.columns) else []
    return "\n".join([*star, *spread, *table.notes])


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _mark(code: str, seen: bool) -> str:
    return code + (" *" if seen else "")


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}"


def _accuracy(cell: Cell | None) -> str:
    if cell is None:
        return NOTHING
    return _percent(cell.mean) + ("" if cell.deviation is None else f" ± {100 * cell.deviation:.2f}")
