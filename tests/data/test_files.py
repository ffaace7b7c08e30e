import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.data.files import Headerless, file_format, read_table
from layerbridge.errors import DataError

CELL = st.text(st.characters(exclude_characters="\t\n\r\x00\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fields(path, **options):
    return [row.fields for row in read_table(path, **options).rows]


def refused(path):
    with pytest.raises(DataError) as error:
        read_table(path)
    return str(error.value)


@given(rows=ROWS)
def test_a_tsv_gives_back_every_cell_as_written(rows, tmp_path_factory):
    rows = [(f"x{a}", b) for a, b in rows]
    text = "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    path = write(tmp_path_factory.mktemp("t") / "x.tsv", text)
    assert [(row["a"], row["b"]) for row in fields(path)] == rows


@given(rows=ROWS)
def test_jsonl_and_json_and_gzip_give_back_every_object(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    objects = [{"a": a, "b": b} for a, b in rows]
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)
    for path in (
        write(folder / "x.jsonl", lines),
        write(folder / "x.jsonl.gz", gzip.compress(lines.encode())),
        write(folder / "x.json", json.dumps(objects)),
        write(folder / "y.json", json.dumps({"test": objects})),
        write(folder / "z.json", lines),
    ):
        assert fields(path) == objects


def test_parquet_gives_back_rows_and_numbers(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert [row.fields for row in table.rows] == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert [row.place for row in table.rows] == ["row 1", "row 2"]
    assert table.columns == ("text", "label")


def test_a_csv_cell_may_hold_commas_quotes_and_line_breaks_and_lines_are_counted_in_the_file(tmp_path):
    path = write(tmp_path / "x.csv", 'a,b\n"1, ""2""\n3",x\ny,z\n')
    table = read_table(path)
    assert [row.fields for row in table.rows] == [{"a": '1, "2"\n3', "b": "x"}, {"a": "y", "b": "z"}]
    assert [row.place for row in table.rows] == ["line 2", "line 4"]


def test_a_quotation_mark_in_a_tsv_is_a_character(tmp_path):
    assert fields(write(tmp_path / "x.tsv", 'a\tb\n"open\tx\n')) == [{"a": '"open', "b": "x"}]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    for name, text in (
        ("x.tsv", "a\tb\r\n1\t2\r\n"),
        ("x.csv", "a,b\r\n1,2\r\n"),
        ("x.jsonl", '{"a":"1","b":"2"}\r\n'),
    ):
        assert fields(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == [{"a": "1", "b": "2"}]


def test_a_unicode_line_separator_does_not_end_a_line(tmp_path):
    assert fields(write(tmp_path / "x.tsv", "a\tb\n1\u20282\t\x85\n")) == [{"a": "1\u20282", "b": "\x85"}]


def test_a_headerless_tsv_is_known_by_its_first_line(tmp_path):
    rule = Headerless(columns=("text", "label"), is_data=lambda row: row["label"] in ("yes", "no"))
    bare = write(tmp_path / "bare.tsv", "first\tyes\tmore\nsecond\tno\tmore\n")
    headed = write(tmp_path / "headed.tsv", "text\tlabel\nfirst\tyes\n")
    assert fields(bare, headerless=rule)[0] == {"text": "first", "label": "yes", "column_3": "more"}
    assert len(fields(bare, headerless=rule)) == 2
    assert fields(headed, headerless=rule) == [{"text": "first", "label": "yes"}]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.tsv", "tsv"),
        ("a.JSONL", "jsonl"),
        ("a.b.csv.gz", "csv"),
        ("a.parquet", "parquet"),
        ("a.txt", None),
        ("a.gz", None),
        ("a.parquet.gz", None),
        ("a", None),
    ],
)
def test_the_format_is_told_by_the_ending(tmp_path, name, found):
    assert file_format(tmp_path / name) == found


def test_a_missing_file_is_named(tmp_path):
    assert "nowhere.tsv: no such file" in refused(tmp_path / "nowhere.tsv")


def test_an_unknown_ending_gets_the_known_ones(tmp_path):
    message = refused(write(tmp_path / "x.xlsx", "a"))
    assert "x.xlsx" in message
    assert ".parquet, .jsonl, .json, .csv, .tsv" in message


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.json", "x.parquet"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, name):
    assert f"{name} is empty" in refused(write(tmp_path / name, ""))
    if name != "x.parquet":
        assert f"{name} is empty" in refused(write(tmp_path / name, " \n\n"))


@pytest.mark.parametrize(("name", "text"), [("x.tsv", "a\tb\n"), ("x.csv", "a,b\n")])
def test_a_header_without_rows_is_said_so(tmp_path, name, text):
    assert f"{name} has a header (a, b) and no rows" in refused(write(tmp_path / name, text))


def test_a_parquet_without_rows_is_said_so(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert "x.parquet has columns (a) and no rows" in refused(tmp_path / "x.parquet")


def test_an_empty_json_list_is_said_to_be_empty(tmp_path):
    assert "x.json is empty (0 rows)" in refused(write(tmp_path / "x.json", "[]"))


def test_a_broken_json_line_is_named_by_its_number(tmp_path):
    message = refused(write(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": \n'))
    assert "x.jsonl, line 3: broken JSON" in message


def test_broken_json_is_named_by_its_line(tmp_path):
    assert "x.json, line 2: broken JSON" in refused(write(tmp_path / "x.json", '[{"a": 1},\n{"a" 2}]'))


def test_json_that_is_no_object_is_refused(tmp_path):
    assert "line 2: found int" in refused(write(tmp_path / "x.jsonl", '{"a": 1}\n5\n'))
    assert "an object with keys a, b" in refused(write(tmp_path / "x.json", '{"a": [1], "b": 2}'))
    assert "x.json holds int" in refused(write(tmp_path / "x.json", "5"))


@pytest.mark.parametrize(("name", "sep"), [("x.csv", ","), ("x.tsv", "\t")])
@pytest.mark.parametrize(("cells", "count"), [(["1"], 1), (["1", "2", "3", "4"], 4)])
def test_a_row_with_too_many_or_too_few_cells_is_counted_on_both_sides(tmp_path, name, sep, cells, count):
    lines = [["a", "b"], ["1", "2"], cells]
    message = refused(write(tmp_path / name, "\n".join(sep.join(line) for line in lines)))
    assert f"{name}, line 3: {count} cells" in message
    assert "2 columns (a, b)" in message


def test_a_broken_quote_in_a_csv_is_named_by_its_line(tmp_path):
    assert "x.csv, line 3: broken CSV" in refused(write(tmp_path / "x.csv", 'a,b\n1,2\n"1"x,2\n'))


def test_a_repeated_column_is_named(tmp_path):
    assert "names column 'a' twice" in refused(write(tmp_path / "x.tsv", "a\ta\n1\t2\n"))


def test_what_is_not_utf8_is_named_by_line_and_byte(tmp_path):
    message = refused(write(tmp_path / "x.tsv", b"a\tb\nok\tok\nna" + b"\xefve\tx\n"))
    assert "x.tsv, line 3: not UTF-8 (byte 0xef)" in message


def test_a_damaged_gzip_or_parquet_is_named(tmp_path):
    assert "x.tsv.gz can't be read" in refused(write(tmp_path / "x.tsv.gz", "not gzip"))
    assert "x.tsv.gz can't be read" in refused(write(tmp_path / "x.tsv.gz", gzip.compress(b"a" * 999)[:-9]))
    assert "x.parquet is not a parquet file" in refused(write(tmp_path / "x.parquet", "not parquet"))
