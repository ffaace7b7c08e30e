"""An annotation: every row once, in order, as the bridge answers it alone; reruns do what is not done."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerbridge.annotation import annotate as room
from layerbridge.annotation import asking
from layerbridge.annotation.annotate import FailedShardsError, Request, estimate, prepare
from layerbridge.errors import AnnotationError, CheckpointError, ConfigError, DataError
from tests.annotation.corpus import ANSWERS, BAD, call, files, read, texts, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards=3, rows=40)


@pytest.fixture
def asked(monkeypatch):
    """Numbers of rows that were asked about, a window each."""
    counts = []
    plain = asking.ask

    def counting(bridge, rows, options):
        counts.append(len(rows))
        return plain(bridge, rows, options)

    monkeypatch.setattr("layerbridge.annotation.shard.ask", counting)
    return counts


def test_each_row_has_the_label_that_the_bridge_gives_it_alone(run, bridge, corpus, tmp_path):
    call(run, corpus, tmp_path / "out", probabilities=True)
    for number in range(3):
        rows = read(tmp_path / f"out/data/shard-{number}.jsonl")
        assert [(row["id"], row["text"]) for row in rows] == [
            (f"{number}-{index}", text) for index, text in enumerate(texts(40, number))
        ]
        for row in rows[:12]:
            (alone,) = bridge.classify([bridge.render(row["text"])])
            assert row["label"] == alone.label
            assert row["probability"] == pytest.approx(alone.probability, abs=1e-5)
            assert row["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
            assert list(row) == ["id", "text", "label", "probability", "probabilities"]
    assert len({row["label"] for row in rows}) > 1, "labels that never differ show nothing"


def test_each_row_has_the_answer_that_the_bridge_writes_alone(run, bridge, corpus, tmp_path):
    call(run, corpus / "shard-1.jsonl", tmp_path / "out", method="generate", max_new_tokens=6, stop=("t",), raw=True)
    rows = read(tmp_path / "out/data/shard-1.jsonl")
    assert [row["answer"] for row in rows] == [
        bridge.generate([text], max_new_tokens=6, stop=["t"])[0] for text in texts(40, 1)
    ]
    assert len({row["answer"] for row in rows}) > 1


def test_labels_and_what_the_llm_reads_can_be_given(run, bridge, corpus, tmp_path):
    call(run, corpus, tmp_path / "out", labels=("one", "two three"), prompt="cat", prefix="my_")
    for row in read(tmp_path / "out/data/shard-0.jsonl")[:8]:
        (alone,) = bridge.classify([bridge.render(row["text"])], ["one", "two three"], prompts=["cat"])
        assert row["my_label"] == alone.label
        assert row["my_probability"] == pytest.approx(alone.probability, abs=1e-5)


def test_bad_rows_go_to_the_rejects_with_line_and_reason(run, corpus, tmp_path):
    report = call(run, corpus, tmp_path / "out")
    rejects = read(tmp_path / "out/rejects/shard-2.jsonl.jsonl")
    assert [(row["line"], row["id"], row["reason"], row["raw"]) for row in rejects] == [
        (21, "b1", "empty", BAD[0]),
        (22, None, "not_object", BAD[1]),
        (23, None, "nan", BAD[2]),
        (24, None, "not_json", BAD[3]),
        (25, "b3", "missing", BAD[4]),
    ]
    sums = {"shards": 3, "rows": 135, "written": 120, "cut": 0}
    rejected = {"empty": 3, "missing": 3, "nan": 3, "not_json": 3, "not_object": 3}
    assert report.sums["rejected"] == rejected
    assert sums.items() <= report.sums.items()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary == {"format": "layerbridge-annotation-summary", "version": 1} | report.sums


def test_done_shards_are_not_done_again(run, corpus, tmp_path, asked):
    call(run, corpus, tmp_path / "out")
    assert asked == [45] * 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/data").iterdir()}
    report = call(run, corpus, tmp_path / "out")
    assert len(asked) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (report.here["rows"], report.sums["rows"]) == (0, 135)


def test_a_shard_whose_output_is_gone_is_done_again(run, corpus, tmp_path, asked):
    call(run, corpus, tmp_path / "out")
    before = files(tmp_path / "out")
    (tmp_path / "out/data/shard-1.jsonl").unlink()
    report = call(run, corpus, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert (len(asked), report.here["rows"]) == (4, 45)


def test_parts_together_give_what_one_call_gives(run, corpus, tmp_path, asked):
    call(run, corpus, tmp_path / "whole")
    for number in (2, 1):
        assert call(run, corpus, tmp_path / "parts", part=(number, 2)).num_shards == number
    assert not (tmp_path / "parts/summary.json").exists()
    call(run, corpus, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(asked) == 6


def test_another_annotation_in_the_output_is_refused_with_what_differs(run, pair_run, corpus, tmp_path):
    out = tmp_path / "out"
    call(run, corpus, out)
    before = files(out)
    with pytest.raises(ConfigError, match=r"labels was \('positive'.*now \('a', 'b'\).*another OUTPUT"):
        call(run, corpus, out, labels=("a", "b"))
    with pytest.raises(ConfigError, match=r"the bridge was tiny \(\w{12}\), now pair"):
        call(pair_run, corpus, out, raw=True)
    with pytest.raises(ConfigError, match=r"2 shards are gone: shard-0.jsonl, shard-1.jsonl"):
        call(run, corpus / "shard-2*", out)
    assert call(run, corpus / "shard-*", out).here["rows"] == 0, "the same shards by another name"
    assert files(out) == before


def test_a_done_shard_that_changed_is_refused_and_one_that_failed_may_be_replaced(run, tmp_path):
    corpus = write_corpus(tmp_path / "in", shards=2, rows=5)
    good = (corpus / "shard-1.jsonl").read_bytes()
    (corpus / "shard-1.jsonl").rename(corpus / "shard-1.parquet")
    with pytest.raises(FailedShardsError, match=r"1 of 2 shards failed") as caught:
        call(run, corpus, tmp_path / "out")
    assert "shard-1.parquet: ArrowInvalid" in str(caught.value)
    assert caught.value.report.sums["shards"] == 1
    assert not (tmp_path / "out/data/shard-1.parquet").exists()
    assert not (tmp_path / "out/summary.json").exists()
    pq.write_table(pa.table({"text": ["the cat"]}), corpus / "shard-1.parquet")
    report = call(run, corpus, tmp_path / "out")
    assert (report.here["rows"], report.sums["shards"]) == (1, 2)
    (corpus / "shard-0.jsonl").write_bytes(good + b"\n")
    with pytest.raises(ConfigError, match=r"1 shards are done, and of another size now: shard-0.jsonl"):
        call(run, corpus, tmp_path / "out")


def test_a_run_that_changed_meanwhile_is_refused(run, corpus, tmp_path, monkeypatch):
    prepared = prepare(Request(run=str(run), source=str(corpus), output=str(tmp_path / "out")))
    monkeypatch.setattr(asking, "checkpoint_fingerprint", lambda path: "0" * 64)
    monkeypatch.setattr(asking, "_LOADED", {})
    with pytest.raises(CheckpointError, match="has changed: its bridge is 000000000000"):
        room.annotate(prepared, progress=False)


def test_texts_that_are_too_long_are_rejected_or_cut_as_asked(run, bridge, corpus, tmp_path):
    source = corpus / "shard-0.jsonl"
    lengths = bridge.count_source_tokens([bridge.render(text) for text in texts(40, 0)])
    limit = sorted(lengths)[20]
    longer = sum(length > limit for length in lengths)
    rejecting = call(run, source, tmp_path / "reject", max_source_tokens=limit)
    cutting = call(run, source, tmp_path / "cut", max_source_tokens=limit, too_long="cut")
    assert (rejecting.sums["rejected"]["too_long"], rejecting.sums["written"]) == (longer, 40 - longer)
    assert (cutting.sums["cut"], cutting.sums["written"]) == (longer, 40)
    details = [row for row in read(tmp_path / "reject/rejects/shard-0.jsonl.jsonl") if row["reason"] == "too_long"]
    assert all(row["detail"].endswith(f"encoder tokens, the limit is {limit}") for row in details)
    short = {row["id"]: row for row in read(tmp_path / "reject/data/shard-0.jsonl")}
    assert all(row == short.get(row["id"], row) for row in read(tmp_path / "cut/data/shard-0.jsonl"))


def test_a_row_that_the_models_refuse_is_rejected_and_its_neighbours_are_not(run, corpus, tmp_path, monkeypatch):
    plain = asking._ask_all

    def refusing(bridge, some, options):
        if any("cat sat" in text for text in some):
            raise DataError("no cats that sit")
        return plain(bridge, some, options)

    monkeypatch.setattr(asking, "_ask_all", refusing)
    report = call(run, corpus, tmp_path / "out")
    sitting = [text for number in range(3) for text in texts(40, number) if "cat sat" in text]
    assert sitting
    assert report.sums["rejected"]["refused"] == len(sitting)
    assert report.sums["written"] == 120 - len(sitting)


def test_a_mistake_of_ours_in_one_shard_is_named_and_costs_no_other(run, corpus, tmp_path, monkeypatch):
    plain = asking.ask

    def failing(bridge, rows, options):
        if rows[0].fields["id"].startswith("1-"):
            raise ZeroDivisionError("by nothing")
        return plain(bridge, rows, options)

    with monkeypatch.context() as patched:
        patched.setattr("layerbridge.annotation.shard.ask", failing)
        with pytest.raises(FailedShardsError, match=r"shard-1\.jsonl: ZeroDivisionError: by nothing") as caught:
            call(run, corpus, tmp_path / "out")
    assert caught.value.report.sums["shards"] == 2
    assert "ZeroDivisionError" in (tmp_path / "out/datatrove/logs/task_00001.log").read_text()
    assert call(run, corpus, tmp_path / "out").here["rows"] == 45


def test_prompts_with_several_fields_take_them_from_columns(pair_run, tmp_path):
    rows = [{"id": index, "a": "the cat", "b": text} for index, text in enumerate(texts(6, 0))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(pair_run, tmp_path / "pairs.jsonl", tmp_path / "out", columns={"premise": "a", "hypothesis": "b"})
    assert [row["b"] for row in read(tmp_path / "out/data/pairs.jsonl")] == texts(6, 0)
    with pytest.raises(ConfigError, match=r"--text-column is for prompts with one field; this one has 2"):
        call(pair_run, tmp_path / "pairs.jsonl", tmp_path / "other", text_column="a")
    with pytest.raises(
        ConfigError, match=r"no field 'premis', it has 'premise', 'hypothesis'\. Did you mean 'premise'"
    ):
        call(pair_run, tmp_path / "pairs.jsonl", tmp_path / "other", columns={"premis": "a"})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"text_column": "txt"},
            r"none of the first 42 rows has a column 'txt'\. Did you mean 'text'\?.*--text-column",
        ),
        ({"prefix": "", "rename": "label"}, r"rows have a column 'label' already.*--prefix"),
        ({"labels": ("a", "b", "a")}, r"Labels are given twice: 'a'"),
        ({"method": "generate", "labels": ("a",)}, r"Leave out --generate, or them"),
        ({"max_new_tokens": 3}, r"Add --generate"),
        ({"too_long": "drop"}, r"too_long"),
        ({"executor": "slum"}, r"Unknown executor 'slum'\. Did you mean 'slurm'"),
        ({"executor_options": {"time": "1"}}, r"--executor-option is for --executor slurm and ray"),
        ({"part": (4, 3)}, r"part is 4/3; wanted a number from 1 to 3"),
        ({"part": (1, 9)}, r"there are 3 shards; wanted at most as many parts"),
        ({"workers": 0}, r"workers is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(run, corpus, tmp_path, request_, message):
    source = corpus
    if "rename" in request_:
        source = tmp_path / "in" / "rows.jsonl"
        source.parent.mkdir()
        source.write_text(json.dumps({"text": "the cat", request_.pop("rename"): 1}) + "\n")
    with pytest.raises((ConfigError, DataError), match=message):
        call(run, source, tmp_path / "out", **request_)
    assert not (tmp_path / "out").exists()


def test_an_output_in_the_corpus_and_foreign_data_in_the_output_are_refused(run, tmp_path):
    corpus = write_corpus(tmp_path / "in", shards=1, rows=3)
    for place in (corpus, corpus / "out"):
        with pytest.raises(DataError, match="Take an OUTPUT outside of INPUT"):
            call(run, corpus, place)
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/mine.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"has a folder data/ with files, and no annotation.json"):
        call(run, corpus, tmp_path / "out")


def test_a_corpus_without_shards_says_what_was_found(run, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"found no file\. Wanted shards that end in \.jsonl"):
        call(run, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/rows.csv").write_text("text\nx\n")
    (tmp_path / "in/_SUCCESS").write_text("")
    with pytest.raises(DataError, match=r"found 1 files of other kinds"):
        call(run, tmp_path / "in", tmp_path / "out")


def test_two_calls_do_not_write_to_one_output(run, corpus, tmp_path):
    prepared = prepare(Request(run=str(run), source=str(corpus), output=str(tmp_path / "out")))
    with room._alone(prepared), pytest.raises(ConfigError, match="Another `layerbridge annotate` is writing"):
        room.annotate(prepared, progress=False)


def test_an_estimate_counts_what_is_left_and_writes_nothing(run, corpus, tmp_path):
    prepared = prepare(Request(run=str(run), source=str(corpus), output=str(tmp_path / "out"), workers=2))
    found = estimate(prepared)
    assert not (tmp_path / "out").exists()
    assert found is not None
    assert (found.shards, found.asked, found.rejected, found.workers) == (3, 45, 5, 2)
    assert found.rows == pytest.approx(135, rel=0.05)
    assert found.seconds == pytest.approx(found.rows / found.rows_per_second / 2)
    call(run, corpus, tmp_path / "out")
    assert estimate(prepared) is None


def test_any_fsspec_url_does(run, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    corpus = write_corpus(tmp_path / "in", shards=2, rows=8)
    for path in corpus.iterdir():
        memory.pipe_file(f"/in/{path.name}", path.read_bytes())
    call(run, corpus, tmp_path / "out")
    call(run, "memory://in/*.jsonl", "memory://out")
    wanted = files(tmp_path / "out")
    assert {name: memory.cat_file(f"/out/{name}") for name in wanted} == wanted
    call(run, f"file://{corpus}", f"file://{tmp_path}/url")
    assert files(tmp_path / "url") == wanted
    memory.rm("/in", recursive=True)
    memory.rm("/out", recursive=True)


def test_a_shard_that_fails_leaves_no_output_and_says_where_it_stopped(run, tmp_path):
    import gzip

    corpus = write_corpus(tmp_path / "in", shards=1, rows=5, bad=False)
    cut = gzip.compress(b'{"text": "the cat"}\n' * 5000)[:-20]
    (corpus / "cut.jsonl.gz").write_bytes(cut)
    with pytest.raises(AnnotationError, match=r"cut\.jsonl\.gz: OSError: Truncated compressed stream"):
        call(run, corpus, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["shard-0.jsonl"]
    assert not list((tmp_path / "out/partial").iterdir())


def test_answers_of_the_task_are_the_labels(run, corpus, tmp_path):
    prepared = prepare(Request(run=str(run), source=str(corpus), output=str(tmp_path / "out")))
    assert prepared.plan.options.labels == tuple(ANSWERS)
