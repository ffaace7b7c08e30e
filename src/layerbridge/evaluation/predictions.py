"""The file predictions/LANG.jsonl: a header row that says where answers came from, then a row per example.

The header is in the file and not beside it, so that answers and their origin cannot drift apart. A file is
moved into place whole, and re-used only if its header is the one that would be written now.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from layerbridge.atomic import replace_text
from layerbridge.errors import DataError
from layerbridge.results import (
    Provenance,
    Record,
    check_format,
    describe_errors,
    parse_record,
)

FORMAT = "layerbridge-predictions"
FORMAT_VERSION = 1
FOLDER = "predictions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a bridge answered to one example."""

    id: str
    language: str
    answer: str
    """Gold."""
    scored: str | None = None
    """The most probable answer; None: not asked for, or some log-probability is not finite."""
    log_probs: dict[str, float | None] | None = None
    """Answer -> summed log-probability of its tokens, end token included; None for a number not finite."""
    generated: str | None = None
    """Greedy text, as it came; None: not asked for."""
    source_tokens: int
    """Encoder tokens of the text, before any cut."""
    truncated: bool
    """Whether the text was cut at `max_source_tokens`."""


class PredictionsHeader(Record):
    """First row of a predictions file."""

    language: str
    n: int = Field(ge=1)
    """Rows that follow."""
    answers: tuple[str, ...] | None
    """The task's possible answers, in its order; None: free text."""
    data_source: str
    data_sha256: str
    created: AwareDatetime
    provenance: Provenance

    def same_origin(self, other: "PredictionsHeader") -> bool:
        """Whether both say the same of everything but the time."""
        return self == other.model_copy(update={"created": self.created})


_ROW = TypeAdapter(Prediction)
_COLUMNS = frozenset(Prediction.__dataclass_fields__)


def predictions_path(folder: Path, language: str) -> Path:
    """Return where an evaluation folder keeps a language's predictions."""
    return folder / FOLDER / f"{language}.jsonl"


def write_predictions(path: Path, header: PredictionsHeader, predictions: Sequence[Prediction]) -> None:
    """Write a predictions file in one step: it is complete or it is not there."""
    assert header.n == len(predictions)
    rows = [{"format": FORMAT, "version": FORMAT_VERSION, **header.model_dump(mode="json")}]
    rows += map(asdict, predictions)
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_predictions(path: Path) -> tuple[PredictionsHeader, list[Prediction]]:
    """Read a predictions file.

    Raises:
        DataError: no such file, a row that is not one, or more or fewer rows than the header says.
    """
    lines = _lines(path)
    header = _header(path, next(lines, ""))
    rows = [_row(text, f"{path}, line {number}", header.language) for number, text in enumerate(lines, start=2)]
    if len(rows) != header.n:
        raise DataError(
            f"{path} has {len(rows)} rows and its header says {header.n}. Delete the file and evaluate again."
        )
    first_line: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if first_line.setdefault(row.id, number) != number:
            raise DataError(f"{path}, line {number}: id {row.id!r} is also on line {first_line[row.id]}.")
    return header, rows


def read_header(path: Path) -> PredictionsHeader:
    """Read the first row of a predictions file alone."""
    return _header(path, next(_lines(path), ""))


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise DataError(f"No predictions at {path}. `layerbridge evaluate RUN` writes them.")
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _header(path: Path, text: str) -> PredictionsHeader:
    where = f"{path}, line 1"
    data = _parse(text, where)
    check_format(data, FORMAT, FORMAT_VERSION, where=where)
    body = {key: value for key, value in data.items() if key not in ("format", "version")}
    header = parse_record(PredictionsHeader, body, where=where)
    if header.language != path.stem:
        raise DataError(f"{where} is of language {header.language!r}; the file's name says {path.stem!r}.")
    return header


def _row(text: str, where: str, language: str) -> Prediction:
    data = _parse(text, where)
    if unknown := sorted(set(data) - _COLUMNS):
        raise DataError(f"{where}: unknown columns {', '.join(unknown)}. Known: {', '.join(sorted(_COLUMNS))}.")
    try:
        row = _ROW.validate_json(text, strict=True)
    except ValidationError as error:
        raise DataError(f"{where}: {describe_errors(error)}") from None
    if row.language != language:
        raise DataError(f"{where} is of language {row.language!r} in a file of {language!r}.")
    return row


def _parse(text: str, where: str) -> dict:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{where} holds {type(data).__name__}, wanted an object.")
    return data
