"""Tables of the report, each told once and written three ways: HTML (the page's template), CSV and Markdown.

A cell holds what is shown and the exact values behind it, so the three cannot disagree.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from layerbridge.reporting.wording import NOTHING

Value = float | int | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column as it is headed."""

    heading: str
    """On the page; unique within its `group`."""
    group: str = ""
    """A heading over this and its neighbours of the same group."""
    parts: tuple[str, ...]
    """CSV headings of a cell's values."""
    is_text: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is shown, and the values that it was made of."""

    text: str
    values: tuple[Value, ...]
    """One for each of the column's `parts`; the first sorts."""
    small: str = ""
    """A second line."""
    mark: str = ""
    """`better` or `worse`: said by its p-values and interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line."""

    cells: tuple[Cell, ...]
    is_average: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table under its name."""

    key: str
    """Name of its files."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...] = ()
    """How to read it; sentences."""

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Headings of groups with the number of columns that each stands over."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return tuple(found)

    @property
    def body(self) -> tuple[Row, ...]:
        """Rows that are not averages."""
        return tuple(row for row in self.rows if not row.is_average)

    @property
    def foot(self) -> tuple[Row, ...]:
        """Averages."""
        return tuple(row for row in self.rows if row.is_average)


def to_csv(table: Table) -> str:
    """Return a table as CSV: one column for each value, unrounded; averages are the last rows."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        f"{column.group}: {part}" if column.group else part for column in table.columns for part in column.parts
    )
    for row in table.rows:
        writer.writerow("" if value is None else value for cell in row.cells for value in cell.values)
    return file.getvalue()


def to_markdown(table: Table) -> str:
    """Return a table as Markdown with its title and caption, cells as the page shows them."""
    headings = [f"{column.group}: {column.heading}" if column.group else column.heading for column in table.columns]
    lines = [
        f"**{_escaped(table.title)}**",
        "",
        _line(headings),
        "| " + " | ".join("---" if column.is_text else "---:" for column in table.columns) + " |",
        *(_line([f"{c.text} ({c.small})" if c.small else c.text for c in row.cells]) for row in table.rows),
    ]
    notes = [f"- {_escaped(note)}" for note in table.caption]
    return "\n".join([*lines, "", *notes] if notes else lines) + "\n"


def text_cell(text: str | None) -> Cell:
    """Return a cell that is its own value."""
    return Cell(text=text or NOTHING, values=(text,))


def empty_cell(column: Column) -> Cell:
    """Return a cell of a value that there is not."""
    return Cell(text=NOTHING, values=(None,) * len(column.parts))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    """Keep a user's text from being markup, HTML included."""
    for mark in "\\|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
