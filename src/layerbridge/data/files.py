"""Files -> rows: jsonl, json, csv, tsv (each also .gz) and parquet; errors name file and line.

Text formats are read with the standard library, so that a message can say where in the file the trouble is. A
TSV has no quoting: a tab always parts two cells, a quotation mark is a character. A CSV follows RFC 4180.
Both need a header line, unless the caller knows the columns of a file without one. A JSON file is a list of
objects, an object whose one value is such a list, or JSON lines.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerbridge.errors import DataError

TEXT_FORMATS = ("jsonl", "json", "csv", "tsv")
FORMATS = ("parquet", *TEXT_FORMATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row; `fields` maps a column to a cell."""

    place: str
    """Where it stands: `line 3` of a text file, or `row 3` of a parquet or JSON file; counted from 1."""
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The rows of one file. Never empty."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Headerless:
    """A TSV that may come without a header: its columns, and how to tell its first line from a header."""

    columns: tuple[str, ...]
    is_data: Callable[[dict[str, str]], bool]


def file_format(path: Path) -> str | None:
    """Return the format by the file's ending, or None if it is none that can be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        ending = suffixes[-2].lstrip(".") if len(suffixes) > 1 else ""
        return ending if ending in TEXT_FORMATS else None
    ending = suffixes[-1].lstrip(".") if suffixes else ""
    return ending if ending in FORMATS else None


def read_table(path: Path, *, name: str | None = None, headerless: Headerless | None = None) -> Table:
    """Read a file.

    Args:
        path: the file.
        name: how messages call it; by default its file name.
        headerless: what a TSV without a header holds, if it may come without one.

    Raises:
        DataError: no such file, a format that can't be read, no rows, broken lines, not UTF-8.
    """
    name = name or path.name
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{name}: can't read this kind of file. Wanted one of {_wanted_endings()}; convert it.")
    if not path.is_file():
        raise DataError(f"{name}: no such file. Check the path in the recipe's task, or `--data`.")
    if kind == "parquet":
        return _read_parquet(path, name)
    text = _read_text(path, name)
    if not text.strip():
        raise DataError(f"{name} is empty (0 rows). Wanted at least one row; is the download complete?")
    match kind:
        case "jsonl":
            return _table_of_objects(name, _json_lines(text, name))
        case "json":
            return _table_of_objects(name, _json_objects(text, name))
        case "csv":
            return _table_of_cells(name, _csv_cells(text, name), None)
        case _:
            return _table_of_cells(name, _tsv_cells(text), headerless)


def _wanted_endings() -> str:
    return ", ".join(f".{kind}" for kind in FORMATS) + ", or a text format with .gz"


def _read_text(path: Path, name: str) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise DataError(f"{name} can't be read: {error}. Fetch it again, or unpack it yourself.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = data[error.start]
        raise DataError(
            f"{name}, line {line}: not UTF-8 (byte 0x{found:02x}). Convert the file, for example with `iconv "
            f"-f WINDOWS-1252 -t UTF-8`."
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines that are not blank; only a newline ends a line, not U+2028 or the like."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip(" "):  # a line of tabs is a row of empty cells, not a blank line
            yield number, line


# ------------------------------------------------------------------------------------------------------------
# JSON


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(text):
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {number}: broken JSON ({error.msg} at column {error.colno}). "
                f'Wanted one object a line, such as {{"text": "..."}}.'
            ) from None


def _json_objects(text: str, name: str) -> Iterator[tuple[str, Any]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # more than one value: JSON lines under the name .json
            yield from _json_lines(text, name)
            return
        raise DataError(
            f"{name}, line {error.lineno}: broken JSON ({error.msg} at column {error.colno}). Wanted a list of objects."
        ) from None
    lists = [value for value in data.values() if isinstance(value, list)] if isinstance(data, dict) else [data]
    if isinstance(data, dict) and len(data) == 1 and lists:
        data = lists[0]
    elif isinstance(data, dict) and not lists:
        data = [data]
    if not isinstance(data, list):
        found = f"an object with keys {', '.join(map(str, data))}" if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{name} holds {found}. Wanted a list of objects, or an object with one such list.")
    yield from ((f"row {number}", item) for number, item in enumerate(data, start=1))


def _table_of_objects(name: str, items: Iterator[tuple[str, Any]]) -> Table:
    rows = []
    columns: dict[str, None] = {}
    for place, item in items:
        if not isinstance(item, dict):
            raise DataError(f"{name}, {place}: found {type(item).__name__}, wanted an object with the task's columns.")
        columns.update(dict.fromkeys(item))
        rows.append(Row(place=place, fields=item))
    if not rows:
        raise DataError(f"{name} is empty (0 rows). Wanted at least one object.")
    return Table(name=name, columns=tuple(columns), rows=rows)


# ------------------------------------------------------------------------------------------------------------
# CSV, TSV


def _csv_cells(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: broken CSV ({error}). A cell with a comma, a quote or a line break "
            f"stands in double quotes, and a quote in it is doubled."
        ) from None


def _tsv_cells(text: str) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in _lines(text))


def _table_of_cells(name: str, lines: Iterator[tuple[int, list[str]]], headerless: Headerless | None) -> Table:
    number, first = next(lines)
    columns = [cell.strip() for cell in first]
    rows = []
    if headerless and (bare := _headerless_row(headerless, first)):
        columns = list(bare)
        rows.append(Row(place=f"line {number}", fields=bare))
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: the header names column {', '.join(map(repr, twice))} twice. Rename one of them.")
    for number, cells in lines:
        if len(cells) != len(columns):
            raise DataError(
                f"{name}, line {number}: {len(cells)} cells, but the file has {len(columns)} columns "
                f"({', '.join(columns)}). Mend or drop the line."
            )
        rows.append(Row(place=f"line {number}", fields=dict(zip(columns, cells, strict=True))))
    if not rows:
        raise DataError(f"{name} has a header ({', '.join(columns)}) and no rows. Wanted at least one row.")
    return Table(name=name, columns=tuple(columns), rows=rows)


def _headerless_row(headerless: Headerless, cells: Sequence[str]) -> dict[str, str] | None:
    if len(cells) < len(headerless.columns):
        return None
    extra = [f"column_{number}" for number in range(len(headerless.columns) + 1, len(cells) + 1)]
    fields = dict(zip((*headerless.columns, *extra), cells, strict=True))
    return fields if headerless.is_data(fields) else None


# ------------------------------------------------------------------------------------------------------------
# Parquet


def _read_parquet(path: Path, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty (0 bytes). Wanted a parquet file; is the download complete?")
    try:
        data = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a parquet file that can be read: {error}. Fetch it again.") from error
    columns = tuple(data.column_names)
    if not data.num_rows:
        raise DataError(f"{name} has columns ({', '.join(columns)}) and no rows. Wanted at least one row.")
    rows = [Row(place=f"row {number}", fields=fields) for number, fields in enumerate(data.to_pylist(), start=1)]
    return Table(name=name, columns=columns, rows=rows)
