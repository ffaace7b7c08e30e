"""JSON lines, plain or compressed: numbered lines in, the same lines with more columns out.

Lines are read and written as bytes: of a row whose columns are all kept, what stood there stands there still, number
formats and escapes included, and the new columns follow before the closing brace.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa

from layerbridge.annotation.plan import Options
from layerbridge.annotation.rows import MAX_LINE_BYTES, WINDOW_BYTES, WINDOW_ROWS, Outcome, Reject, Row, Window

BUFFER = 2**20
WHITE = " \t\r\n"
"""White space of JSON; the rest of Unicode's is not."""
BOM = b"\xef\xbb\xbf"
SHOWN_BYTES = 8000
"""Of a line that is too long to be read: enough for what rejects show of it."""


class JsonlShard:
    """One shard.

    Args:
        file: its bytes.
        options: of the annotation.
        compression: `gzip`, `zstd` or none. Several members or frames one after another are one stream.
    """

    place = "line"
    """What rows are numbered by."""

    def __init__(self, file: BinaryIO, options: Options, compression: str | None) -> None:
        self._file = file
        self._options = options
        self._compression = compression
        self._reader: io.BufferedReader | None = None

    def windows(self) -> Iterator[Window]:
        """Yield all rows in their order; blank lines are no rows.

        Raises:
            OSError: the file cannot be read, or is cut off.
        """
        rows: list[Row] = []
        lines: list[str] = []
        size = total = 0
        for number, line in self._lines():
            total += len(line)
            row, text = _read(number, line)
            if row is None:
                continue
            rows.append(row)
            lines.append(text)
            size += len(line)
            if len(rows) == WINDOW_ROWS or size >= WINDOW_BYTES:
                yield self._window(rows, lines, total)
                rows, lines, size = [], [], 0
        if rows:
            yield self._window(rows, lines, total)

    def writer(self, sink: BinaryIO) -> "JsonlWriter":
        """Return what writes the shard's rows again."""
        return JsonlWriter(sink, self._options, self._compression)

    def _window(self, rows: list[Row], lines: list[str], total: int) -> Window:
        """Return a window behind which `total` bytes of lines are read; what is buffered beyond does not count."""
        assert self._reader is not None
        share = total / max(1, total + len(self._reader.peek()))
        return Window(rows=rows, raw=lines.__getitem__, payload=lines, read=round(self._file.tell() * share))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield numbered lines without their ends; of one that is too long its beginning, over the limit still."""
        raw: Any = pa.PythonFile(self._file, mode="r")
        if self._compression is not None:
            raw = pa.CompressedInputStream(raw, self._compression)
        reader = self._reader = io.BufferedReader(raw, BUFFER)  # kept: it closes the file when it goes
        number = 0
        while line := reader.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = line
            while not rest.endswith(b"\n") and (rest := reader.readline(MAX_LINE_BYTES + 1)):
                pass
            yield number, line.removeprefix(BOM) if number == 1 else line


class JsonlWriter:
    """Writes a shard's rows with what they gained.

    Args:
        sink: for the bytes; it is left open.
        options: of the annotation.
        compression: of the output. The same rows give the same bytes: no time or name is in the header.
    """

    def __init__(self, sink: BinaryIO, options: Options, compression: str | None) -> None:
        self._keep = options.keep
        self._file: Any = pa.PythonFile(_LeftOpen(sink), mode="w")
        if compression is not None:
            self._file = pa.CompressedOutputStream(self._file, compression)

    def write(self, window: Window, outcomes: Sequence[Outcome]) -> None:
        """Write those rows of a window that have an outcome."""
        lines = [
            self._line(row, line, outcome)
            for row, line, outcome in zip(window.rows, window.payload, outcomes, strict=True)
            if not isinstance(outcome, Reject)
        ]
        if lines:
            self._file.write(b"".join(lines))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _line(self, row: Row, line: str, gained: Mapping[str, Any]) -> bytes:
        if self._keep is None:
            end = json.dumps(gained, ensure_ascii=False)[1:]
            return f"{line[:-1].rstrip(WHITE)}, {end}\n".encode()
        return to_line({name: row.fields[name] for name in self._keep if name in row.fields} | dict(gained))


def to_line(fields: Mapping[str, Any]) -> bytes:
    """Return an object as a line of JSON; half a character is written as an escape, for UTF-8 has none for it."""
    try:
        return f"{json.dumps(fields, ensure_ascii=False, default=str)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(fields, default=str)}\n".encode()


def _read(number: int, line: bytes) -> tuple[Row | None, str]:
    """Return a line's row, or None for a blank one, and its text without white space around it."""
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        shown = line[:SHOWN_BYTES].decode("utf-8", errors="backslashreplace")
        return _bad(number, "line_too_long", f"more than {MAX_LINE_BYTES:,} bytes without a line end"), shown
    try:
        text = line.decode("utf-8").strip(WHITE)
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", errors="backslashreplace").strip(WHITE)
        return _bad(number, "not_utf8", f"byte 0x{line[error.start]:02x} at {error.start + 1}"), shown
    if not text:
        return None, ""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except _NoNumberError as error:
        return _bad(number, "nan", f"{error} is no JSON number, or one too large; write null"), text
    except (ValueError, RecursionError) as error:
        return _bad(number, "not_json", str(error)), text
    if not isinstance(value, dict):
        return _bad(number, "not_object", f"found {type(value).__name__}, wanted an object"), text
    return Row(number=number, fields=value), text


def _bad(number: int, reason: str, detail: str) -> Row:
    return Row(number=number, fields={}, reject=Reject(reason=reason, detail=detail))


class _NoNumberError(ValueError):
    """NaN or Infinity, which Python reads and JSON has not."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NoNumberError(name)


def _finite(text: str) -> float:
    """Return a number; one that no float holds would become infinity, which JSON does not have."""
    value = float(text)
    if math.isinf(value):
        raise _NoNumberError(text[:40])
    return value


class _LeftOpen:
    """A file whose end is not the writer's to decide."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.closed = False

    def write(self, data: bytes) -> int:
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self.closed = True
