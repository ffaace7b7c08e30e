"""`task.train_data`: training rows of another folder, in the task's own columns."""

import gzip
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import BuiltinTaskConfig, TaskRows, load_recipe
from layerbridge.data.tasks import build_task
from tests.data.writers import write_rows

WORDS = ("entailment", "neutral", "contradiction")


def lines(name, count, *more):
    return "".join("\t".join((f"{name} {n}", f"then {n}", WORDS[n % 3], *more)) + "\n" for n in range(count))


def write_nli(folder, name="train.tsv.gz", count=60):
    folder.mkdir(parents=True, exist_ok=True)
    text = lines("train", count, "some_source").encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


def write_xnli(folder, *codes):
    folder.mkdir(parents=True, exist_ok=True)
    for code in codes:
        (folder / f"dev-{code}.tsv").write_text(lines(code, 6))
    return folder


def xnli(data, train_data, **rows):
    return BuiltinTaskConfig(name="xnli", data=str(data), train_data=str(train_data), **rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return write_xnli(root / "xnli", "en", "sw"), write_nli(root / "nli_en")


def test_training_rows_come_from_train_data_and_evaluated_rows_from_data(folders):
    task = build_task(xnli(*folders))
    assert task.load("en", "train").source == "local:nli_en"
    assert len(task.load("en", "train")) == 60
    for code in ("en", "sw"):
        assert task.load(code, "dev").source == "local:xnli"
        assert task.load(code, "dev").examples[0].text == f"Premise: {code} 0 Hypothesis: then 0 Label: "


def test_further_columns_of_a_file_without_a_header_are_not_read(folders):
    first = build_task(xnli(*folders)).load("en", "train").examples[0]
    assert (first.text, first.answer) == ("Premise: train 0 Hypothesis: then 0 Label: ", "Entailment")


@given(dev_rows=st.integers(1, 50), seed=st.integers(0, 3))
def test_dev_rows_are_held_out_of_train_data(folders, dev_rows, seed):
    train, dev = build_task(xnli(*folders)).load_training(TaskRows(dev_rows=dev_rows), seed=seed)
    assert (train.source, dev.source) == ("local:nli_en", "local:nli_en (held out of train)")
    assert (len(train), len(dev)) == (60 - dev_rows, dev_rows)
    assert not {e.text for e in train.examples} & {e.text for e in dev.examples}


def test_dev_rows_to_choose_by_are_those_of_train_data_and_never_the_evaluated_ones(tmp_path):
    data, more = write_xnli(tmp_path / "xnli", "en"), write_nli(tmp_path / "nli")
    write_rows(more / "validation.jsonl", [{"premise": "chosen", "hypothesis": "by", "label": 0}])
    _, dev = build_task(xnli(data, more)).load_training(TaskRows(), seed=0)
    assert dev.source == "local:nli"
    assert [example.text for example in dev.examples] == ["Premise: chosen Hypothesis: by Label: "]


def test_a_text_of_an_evaluated_split_is_counted_and_not_trained_on(tmp_path):
    data, more = write_xnli(tmp_path / "xnli", "en", "de"), write_nli(tmp_path / "nli", "train.tsv")
    with (more / "train.tsv").open("a") as file:
        file.write("en 2\tthen 2\tneutral\tx\nen 3\tthen 3\tneutral\tx\n")
    write_rows(data / "test-en.jsonl", [{"premise": "train 7", "hypothesis": "then 7", "label": 0}])
    task = build_task(xnli(data, more))
    found = {(r.split, r.language): (r.rows, r.in_train) for r in task.validate() if r.state == "ok"}
    assert found == {("train", "en"): (62, 0), ("dev", "en"): (6, 2), ("dev", "de"): (6, 0), ("test", "en"): (1, 1)}
    train, dev = task.load_training(TaskRows(dev_rows=20), seed=0)
    evaluated = {e.text for split in ("dev", "test") for e in task.load("en", split).examples}
    assert len(train) + len(dev) == 59
    assert not evaluated & {e.text for part in (train, dev) for e in part.examples}


def test_train_data_may_be_one_file(folders):
    data, more = folders
    assert len(build_task(xnli(data, more / "train.tsv.gz")).load("en", "train")) == 60


@pytest.mark.parametrize("name", ["train-en.tsv", "en/train.tsv"])
def test_train_data_may_name_its_language(tmp_path, name):
    more = tmp_path / "more"
    write_nli((more / name).parent, (more / name).name)
    assert len(build_task(xnli(tmp_path, more)).load("en", "train")) == 60


def test_a_file_that_names_no_language_is_of_the_one_training_language(folders):
    german = build_task(xnli(*folders, train_languages=("German",)))
    assert {e.language for e in german.load_training(german_rows(), seed=0)[0].examples} == {"de"}
    for languages in (("de",), ("en", "de")):
        task = build_task(xnli(*folders, train_languages=languages))
        with pytest.raises(Exception, match="No train file of language 'en'"):
            task.load("en", "train")
    without = build_task(BuiltinTaskConfig(name="xnli", data=str(folders[1])))
    with pytest.raises(Exception, match="No train file of language 'en'"):  # in `data` it counts for nothing
        without.load("en", "train")


def german_rows():
    return TaskRows(train_languages=("de",), dev_rows=5)


def test_indicxnli_takes_its_english_from_train_data(folders, tmp_path):
    write_rows(
        tmp_path / "indicxnli" / "forward" / "test" / "xnli_ta.json", [{"premise": "p", "hypothesis": "h", "label": 2}]
    )
    indic = str(tmp_path / "indicxnli")
    task = build_task(BuiltinTaskConfig(name="indicxnli", data=indic, train_data=str(folders[1])))
    train, _ = task.load_training(TaskRows(dev_rows=6, balance_classes=True), seed=0)
    assert train.source == "local:nli_en"
    assert len(set(Counter(e.answer for e in train.examples).values())) == 1
    assert task.load("ta", "test").source == "local:indicxnli"


def test_train_data_of_a_recipe_is_meant_from_its_folder(folders, tmp_path):
    write_nli(tmp_path / "nli_en")
    (tmp_path / "r.yaml").write_text("task: {name: xnli, train_data: nli_en}")
    assert load_recipe(tmp_path / "r.yaml").task.train_data == str((tmp_path / "nli_en").resolve())
