"""Shards in, shards out: what stood in them stands there still, and nothing they hold ends the work."""

import gzip
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.annotation import jsonl
from layerbridge.annotation.jsonl import JsonlShard
from layerbridge.annotation.parquet import ParquetShard
from layerbridge.annotation.plan import Options
from layerbridge.annotation.rows import REASONS, WINDOW_ROWS, Reject, text_of
from layerbridge.errors import DataError
from tests.annotation.corpus import call, lines, read, texts

GAINED = {"label": "a", "probability": 0.5}


def through(data: bytes, options: Options | None = None, compression=None) -> tuple[bytes, list[tuple[int, str]]]:
    """Return the output of a JSON lines shard whose readable rows all gain the same, and its rejects."""
    options = options or Options()
    shard, sink, rejects = JsonlShard(io.BytesIO(data), options, compression), io.BytesIO(), []
    writer = shard.writer(sink)
    for window in shard.windows():
        found = [text_of(row, options) for row in window.rows]
        rejects += [
            (row.number, one.reason) for row, one in zip(window.rows, found, strict=True) if isinstance(one, Reject)
        ]
        writer.write(window, [one if isinstance(one, Reject) else GAINED for one in found])
    writer.close()
    return sink.getvalue(), rejects


def test_what_stood_in_a_row_stands_there_to_the_byte():
    row = '{"text" : "caf\\u00e9 \\/",  "n": 1.50e2, "big": 123456789012345678901234567890, "x": "\\ud83d"  }'
    found, rejects = through(f"\ufeff{row}\r\n\n  \n{{}}".encode())
    assert found.decode() == row[:-1].rstrip() + ', "label": "a", "probability": 0.5}\n'
    assert rejects == [(4, "missing")]


def test_kept_columns_alone_are_written_when_asked():
    options = Options(keep=("id", "none"))
    found, rejects = through(
        b'{"label": 1, "text": "x", "id": "\\ud83d", "n": 1}\n{"text": "y", "n": 1e999}\n', options
    )
    assert json.loads(found) == {"id": "\ud83d", "label": "a", "probability": 0.5}
    assert rejects == [(2, "nan")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not_utf8"),
        (b'{"text": "\xed\xa0\xbd"}', "not_utf8"),
        (b'{"text": "x"', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not_json"),
        (b'"text"', "not_object"),
        (b"null", "not_object"),
        (b'{"text": null}', "missing"),
        (b'{"Text": "x"}', "missing"),
        (b'{"text": ["x"]}', "not_text"),
        (b'{"text": {}}', "not_text"),
        (b'{"text": true}', "not_text"),
        (b'{"text": "x", "score": NaN}', "nan"),
        (b'{"text": -Infinity}', "nan"),
        (b'{"text": 1e999}', "nan"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\u2028\\t"}', "empty"),
        (b'{"text": "x \\udc00"}', "half_character"),
        (b'{"text": "x", "probability": 1}', "column_exists"),
    ],
)
def test_a_bad_line_is_rejected_for_its_reason_and_its_neighbours_are_not(line, reason):
    found, rejects = through(b'{"text": "a"}\n' + line + b'\n{"text": "b"}')
    assert rejects == [(2, reason)]
    assert [json.loads(one)["text"] for one in found.splitlines()] == ["a", "b"]


def test_numbers_are_texts_as_in_tasks():
    found, rejects = through(b'{"text": 5}\n{"text": 0.5}\n')
    assert (len(found.splitlines()), rejects) == (2, [])


def test_a_line_without_end_is_no_row_and_is_not_held(monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    data = b'{"text": "a"}\n{"text": "' + b"x" * 1000 + b'"}\n{"text": "b"}\n'
    found, rejects = through(data)
    assert rejects == [(2, "line_too_long")]
    assert [json.loads(one)["text"] for one in found.splitlines()] == ["a", "b"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_shards_are_read_to_their_last_member_and_written_alike_each_time(compression):
    rows = "".join(f"{line}\n" for line in lines(3000, 0)).encode()

    def pack(data: bytes) -> bytes:
        return bytes(pa.compress(data, "zstd", asbytes=True)) if compression == "zstd" else gzip.compress(data)

    plain, _ = through(rows)
    found, rejects = through(
        pack(rows[: rows.index(b"\n", 5000) + 1]) + pack(rows[rows.index(b"\n", 5000) + 1 :]), None, compression
    )
    assert rejects == []
    codec = pa.CompressedInputStream(pa.BufferReader(found), compression)
    assert codec.read() == plain
    assert through(pack(rows), None, compression)[0] == found
    with pytest.raises(OSError, match="Truncated"):
        through(pack(rows)[:-10], None, compression)


def test_windows_hold_all_rows_in_order_and_tell_how_far_they_are():
    data = "".join(f'{{"text": "{number}"}}\n' for number in range(2 * WINDOW_ROWS + 5)).encode()
    windows = list(JsonlShard(io.BytesIO(data), Options(), None).windows())
    assert [len(window.rows) for window in windows] == [WINDOW_ROWS, WINDOW_ROWS, 5]
    assert [row.fields["text"] for window in windows for row in window.rows] == [
        str(number) for number in range(2 * WINDOW_ROWS + 5)
    ]
    places = [window.read for window in windows]
    assert places == sorted(places)
    assert places[0] == pytest.approx(len(data) / 2, rel=0.05)
    assert places[-1] == len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
objects = st.fixed_dictionaries({}, optional=dict.fromkeys(("text", "id", "label", "x"), json_values))
nasty_lines = st.one_of(
    objects.map(lambda value: json.dumps(value).encode()),
    objects.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(nasty_lines, max_size=8), keep=st.sampled_from([None, ("id", "x"), ("text",)]))
def test_every_line_is_written_or_rejected_once_and_what_is_written_is_json(rows, keep):
    found, rejects = through(b"\n".join(rows), Options(keep=keep))
    written = [json.loads(line, parse_constant=pytest.fail) for line in found.decode().split("\n") if line]
    blank = sum(
        not line.removeprefix(b"\xef\xbb\xbf" if index == 0 else b"").strip(b" \t\r\n")
        for index, line in enumerate(rows)
    )
    assert len(written) + len(rejects) == len(rows) - blank
    assert all(GAINED.items() <= row.items() for row in written)
    numbers = [number for number, _ in rejects]
    assert numbers == sorted(set(numbers))
    assert all(reason in REASONS for _, reason in rejects)


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


@pytest.fixture
def table(tmp_path):
    """A shard of three row groups with columns of many types, and metadata."""
    data = texts(25, 0)
    data[3], data[11] = None, "  "
    made = pa.table(
        {
            "id": pa.array(range(25), pa.int32()),
            "text": pa.array(data, pa.large_string()),
            "tags": pa.array([["a", None]] * 25, pa.list_(pa.string())),
            "when": pa.array([0] * 25, pa.timestamp("us", tz="UTC")),
        }
    ).replace_schema_metadata({"owner": "somebody"})
    (tmp_path / "in").mkdir()
    pq.write_table(made, tmp_path / "in/rows.parquet", row_group_size=10, compression="zstd")
    return made


def test_parquet_keeps_columns_types_metadata_order_groups_and_compression(run, bridge, table, tmp_path):
    call(run, tmp_path / "in", tmp_path / "out", probabilities=True)
    file = pq.ParquetFile(tmp_path / "out/data/rows.parquet")
    found = file.read()
    kept = [row for index, row in enumerate(table.to_pylist()) if index not in (3, 11)]
    assert found.select(table.schema.names).to_pylist() == kept
    schema = pq.read_schema(tmp_path / "in/rows.parquet")
    assert found.select(schema.names).schema.equals(schema, check_metadata=True)
    assert schema.field("text").type == pa.large_string()
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [9, 9, 5]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    gained = found.select(["label", "probability", "probabilities"]).to_pylist()
    for row, text in list(zip(gained, (row["text"] for row in kept), strict=True))[:8]:
        (alone,) = bridge.classify([bridge.render(text)])
        assert row["label"] == alone.label
        assert row["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
    rejects = read(tmp_path / "out/rejects/rows.parquet.jsonl")
    assert [(row["row"], row["id"], row["reason"]) for row in rejects] == [(4, 3, "missing"), (12, 11, "empty")]
    assert json.loads(rejects[0]["raw"])["tags"] == ["a", None]


def test_parquet_and_json_lines_give_the_same_rows(run, tmp_path):
    (tmp_path / "in").mkdir()
    rows = [json.loads(line) for line in lines(30, 4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/rows.parquet")
    (tmp_path / "in/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(run, tmp_path / "in", tmp_path / "out", keep=("id",))
    assert pq.read_table(tmp_path / "out/data/rows.parquet").to_pylist() == read(tmp_path / "out/data/rows.jsonl")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"texts": ["x"]}, r"no column 'text' among 'texts'\. Did you mean 'texts'"),
        ({"text": ["x"], "label": ["y"]}, r"column 'label' is there already; give --prefix"),
    ],
)
def test_columns_of_a_parquet_file_are_looked_at_first(run, tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        call(run, tmp_path / "rows.parquet", tmp_path / "out")


def test_parquet_without_rows_and_with_bad_values_ends_no_shard(run, tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in/none.parquet")
    broken = pa.array([b"the cat", b"\xff", b"one"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken, "id": [math.nan, 1.0, 2.0]}), tmp_path / "in/some.parquet")
    pq.write_table(pa.table({"text": [b"the cat"], "id": [math.nan]}), tmp_path / "in/bytes.parquet")
    report = call(run, tmp_path / "in", tmp_path / "out")
    assert report.sums["rejected"] == {"not_text": 1, "not_utf8": 1}
    assert pq.read_table(tmp_path / "out/data/none.parquet").schema.names == ["text", "label", "probability"]
    assert pq.read_table(tmp_path / "out/data/some.parquet").column("text").to_pylist() == ["the cat", "one"]
    assert read(tmp_path / "out/rejects/bytes.parquet.jsonl")[0]["id"] == "nan"


def test_a_parquet_shard_reads_only_the_columns_that_it_needs():
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"], "id": [1], "heavy": ["y" * 1000]}), sink)
    shard = ParquetShard(io.BytesIO(sink.getvalue()), Options(keep=("id",)))
    (window,) = shard.windows()
    assert window.payload[0].schema.names == ["text", "id"]
