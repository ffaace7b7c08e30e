"""Parquet: row groups in, the same row groups with more columns out.

The output keeps schema, metadata and compression of the input. One row group is held at a time, so memory is that of
the corpus's largest one, however long a shard is.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from layerbridge.annotation.plan import Options
from layerbridge.annotation.rows import WINDOW_ROWS, Outcome, Reject, Row, Window
from layerbridge.errors import DataError, nearest

GROUP_BYTES = 256 * 2**20
"""Of rows that wait to be written; a larger row group is written as several."""


class ParquetShard:
    """One shard.

    Args:
        file: its bytes, which can be sought in.
        options: of the annotation.
        compression: none; a parquet file says its own.

    Raises:
        pa.ArrowException: it is no parquet file.
        DataError: a column that is needed is missing, or one that is to be added is there.
    """

    place = "row"

    def __init__(self, file: BinaryIO, options: Options, compression: str | None = None) -> None:
        self._options = options
        self._size = file.seek(0, 2)
        file.seek(0)
        self._file = pq.ParquetFile(file)
        self.schema: pa.Schema = self._file.schema_arrow
        columns = self.schema.names
        for column in options.columns.values():
            if column not in columns:
                guess = nearest(column, columns)
                hint = f" Did you mean {guess!r}?" if guess else ""
                raise DataError(f"no column {column!r} among {', '.join(map(repr, columns)) or 'none'}.{hint}")
        clashing = options.clashing(columns)
        if clashing:
            raise DataError(f"column {clashing[0]!r} is there already; give --prefix, or --keep without it")
        self._needed = [name for name in columns if name in {*options.columns.values(), options.id_column}]
        self._kept = columns if options.keep is None else [name for name in columns if name in options.keep]

    @property
    def num_rows(self) -> int:
        """Of the shard."""
        return int(self._file.metadata.num_rows)

    def windows(self) -> Iterator[Window]:
        """Yield all rows in their order.

        Raises:
            OSError, pa.ArrowException: the file cannot be read.
        """
        read = [name for name in self.schema.names if name in {*self._kept, *self._needed}]
        start, total = 0, max(1, self.num_rows)
        for group in range(self._file.metadata.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            for batch in self._file.iter_batches(batch_size=WINDOW_ROWS, row_groups=[group], columns=read):
                rows = _rows(batch, self._needed, start + 1)
                start += len(rows)
                yield Window(
                    rows=rows,
                    raw=lambda index, batch=batch: _shown(batch, index),  # type: ignore[misc]
                    payload=(batch, start == end),
                    read=self._size * start // total,
                )

    def writer(self, sink: BinaryIO) -> "ParquetWriter":
        """Return what writes the shard's rows again."""
        metadata = self._file.metadata
        codec = metadata.row_group(0).column(0).compression if metadata.num_row_groups and metadata.num_columns else ""
        kept = [self.schema.field(name) for name in self._kept]
        return ParquetWriter(
            sink, pa.schema(kept, metadata=self.schema.metadata), self._options, codec.lower() or "snappy"
        )


class ParquetWriter:
    """Writes a shard's rows with what they gained.

    Args:
        sink: for the bytes; it is left open.
        kept: columns of the input that are written.
        options: of the annotation.
        codec: compression of all columns.
    """

    def __init__(self, sink: BinaryIO, kept: pa.Schema, options: Options, codec: str) -> None:
        self._kept = kept
        self._gained = gained_fields(options)
        self._schema = pa.schema([*kept, *self._gained], metadata=kept.metadata)
        self._codec = "none" if codec == "uncompressed" else codec
        self._writer = pq.ParquetWriter(sink, self._schema, compression=self._codec)
        self._waiting: list[pa.RecordBatch] = []

    def write(self, window: Window, outcomes: Sequence[Outcome]) -> None:
        """Write those rows of a window that have an outcome."""
        batch, ends_group = window.payload
        good = [outcome for outcome in outcomes if not isinstance(outcome, Reject)]
        if good:
            mask = pa.array([not isinstance(outcome, Reject) for outcome in outcomes], pa.bool_())
            kept = batch.select(self._kept.names).filter(mask)
            gained = [pa.array([row[field.name] for row in good], field.type) for field in self._gained]
            self._waiting.append(pa.RecordBatch.from_arrays([*kept.columns, *gained], schema=self._schema))
        if ends_group or sum(some.nbytes for some in self._waiting) >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting = []


def gained_fields(options: Options) -> list[pa.Field]:
    """Return the columns that rows gain, with their types."""
    types = {
        "label": pa.string(),
        "probability": pa.float64(),
        "probabilities": pa.struct([pa.field(label, pa.float64()) for label in options.labels or ()]),
        "answer": pa.string(),
    }
    return [pa.field(name, types[name.removeprefix(options.prefix)]) for name in options.added]


def _rows(batch: pa.RecordBatch, needed: Sequence[str], start: int) -> list[Row]:
    columns = {name: _values(batch.column(name)) for name in needed}
    return [
        _row(start + index, {name: values[index] for name, values in columns.items()})
        for index in range(batch.num_rows)
    ]


def _row(number: int, fields: dict[str, Any]) -> Row:
    for name, value in fields.items():
        if isinstance(value, UnicodeDecodeError):
            reject = Reject(reason="not_utf8", detail=f"column {name!r}: {value.reason} at byte {value.start + 1}")
            return Row(number=number, fields={}, reject=reject)
    return Row(number=number, fields=fields)


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; in the place of strings that are not UTF-8, which Arrow lets through, the error."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(one) for one in column]


def _value(one: pa.Scalar) -> Any:
    try:
        return one.as_py()
    except UnicodeDecodeError as error:
        return error


def _shown(batch: pa.RecordBatch, index: int) -> str:
    row = {name: _value(batch.column(name)[index]) for name in batch.schema.names}
    return json.dumps(row, default=str)
