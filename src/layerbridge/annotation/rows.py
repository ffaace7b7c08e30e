"""Rows of a corpus as a bridge reads them, and what is wrong with those that it cannot read.

A bad row stops nothing: it goes to the rejects with its place and a reason of the table `REASONS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from layerbridge.annotation.plan import Options
from layerbridge.errors import DataError
from layerbridge.model.batches import why_no_text
from layerbridge.prompt import render_prompt

WINDOW_ROWS = 1024
"""Rows that are read, sorted by length and answered together. Windows are cut from a shard alone, so that batches, and
with them the last bits of a probability, do not depend on what else goes on."""
WINDOW_BYTES = 32 * 2**20
"""Of a window's lines, at most one line more."""
MAX_LINE_BYTES = 16 * 2**20
"""A longer line is no row, but a file without line ends."""

REASONS: dict[str, str] = {
    "not_utf8": "bytes that are not UTF-8",
    "not_json": "a line that is not JSON",
    "not_object": "JSON that is not an object",
    "line_too_long": f"a line of more than {MAX_LINE_BYTES // 2**20} MiB",
    "missing": "a column that the prompt needs is not there, or null",
    "not_text": "it is a list, an object, bytes, or true or false",
    "nan": "NaN or infinity, where text is wanted or as a JSON value",
    "empty": "nothing but white space",
    "half_character": "half of a surrogate pair: no Unicode text",
    "no_tokens": "the encoder's tokenizer makes nothing of it",
    "too_long": "more encoder tokens than max_source_tokens, with too_long=reject",
    "column_exists": "it has a column already where one is to be added",
    "refused": "the models do not take it, for the reason in `detail`",
}
"""Why a row is rejected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """Why a row has no answer."""

    reason: str
    """A key of `REASONS`."""
    detail: str
    """The same for this row, in words."""

    def __post_init__(self) -> None:
        assert self.reason in REASONS, self.reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row as it was read."""

    number: int
    """Of its line, or of the row in a parquet file; from 1."""
    fields: Mapping[str, Any]
    """Column -> value; of a parquet file those that are needed. Nothing of a row that could not be read."""
    reject: Reject | None = None
    """Why it could not be read."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rows that stand one after another in a shard."""

    rows: list[Row]
    raw: Callable[[int], str]
    """What stands in the shard for one of `rows`, for people."""
    payload: Any
    """What the shard's writer needs to write them again."""
    read: int
    """Bytes of the shard read by now."""


Outcome = Mapping[str, Any] | Reject
"""The columns that a row gains, or why it gains none."""


def text_of(row: Row, options: Options) -> str | Reject:
    """Return what the encoder reads of a row."""
    if row.reject is not None:
        return row.reject
    clashing = options.clashing(row.fields)
    if clashing:
        return Reject(reason="column_exists", detail=f"column {clashing[0]!r} is there already")
    values = {}
    for field, column in options.columns.items():
        value = row.fields.get(column)
        problem = _problem(value, column)
        if problem is not None:
            return problem
        values[field] = str(value)
    if options.template is None:
        (text,) = values.values()
        return text
    try:
        return render_prompt(options.template, values)
    except DataError as error:  # whatever else a prompt may refuse
        return Reject(reason="refused", detail=str(error))


def _problem(value: Any, column: str) -> Reject | None:
    kind: Literal["missing", "not_text", "nan", "empty", "half_character"]
    if value is None:
        kind, what = "missing", "is missing or null"
    elif isinstance(value, bool) or not isinstance(value, str | int | float):
        kind, what = "not_text", f"holds {type(value).__name__}, wanted text"
    elif isinstance(value, float) and not math.isfinite(value):
        kind, what = "nan", f"holds {value}, wanted text"
    elif not str(value).strip():
        kind, what = "empty", "is empty"
    elif (half := why_no_text(str(value))) is not None:
        kind, what = "half_character", half
    else:
        return None
    return Reject(reason=kind, detail=f"column {column!r} {what}")
