"""A folder of many sets: what is there is found, what is not is said."""

from pathlib import Path

import pytest

from layerbridge.config import BuiltinTaskConfig, TaskRows
from layerbridge.data.local import LocalTask, local_task, why_missing
from layerbridge.data.tasks import TASKS, build_task
from layerbridge.errors import ConfigError
from tests.data.writers import write_rows


def nli(split, code, count=4):
    return [{"premise": f"{split} {code} {n}", "hypothesis": "h", "label": n % 3} for n in range(count)]


def write_all(root: Path) -> Path:
    """Write xnli as the XTREME release has it, nli_en, and three sets in their hub schema."""
    for code in ("en", "sw"):
        (root / "xnli").mkdir(parents=True, exist_ok=True)
        (root / "xnli" / f"dev-{code}.tsv").write_text("p\th\tneutral\np2\th\tcontradiction\n")
    (root / "nli_en").mkdir()
    (root / "nli_en" / "train.tsv").write_text("".join(f"t{n}\th\tneutral\tsource\n" for n in range(9)))
    for code in ("ta", "ml"):
        write_rows(root / "indicxnli" / "forward" / "test" / f"xnli_{code}.json", nli("test", code))
    for split in ("train", "validation", "test"):
        rows = [{"id": f"{split}{n}", "text": f"{split} {n}", "label": n} for n in range(5)]
        write_rows(root / "amazon_reviews" / "en" / f"{split}.jsonl", rows)
    for split in ("train", "dev", "test"):
        rows = [{"index_id": n, "category": "travel", "text": f"{split} {n}"} for n in range(3)]
        write_rows(root / "sib200" / "eng_Latn" / f"{split}.tsv", rows)
        write_rows(root / "sib200" / "sin_Sinh" / f"{split}.tsv", rows)
    for name in ("english", "sinhala"):
        (root / "sinhala_news").mkdir(exist_ok=True)
        (root / "sinhala_news" / f"{name}.tsv").write_text("".join(f"local\t{name} {n}\n" for n in range(10)))
    return root


@pytest.fixture
def root(tmp_path):
    return write_all(tmp_path / "sets")


def test_every_set_is_found_with_its_training_rows_split_and_languages(root):
    assert [local_task(root, name) for name in TASKS if name != "headlines"] == [
        LocalTask(name="xnli", data=root / "xnli", train_data=root / "nli_en", split="dev", languages=("en", "sw")),
        LocalTask(
            name="indicxnli", data=root / "indicxnli", train_data=root / "nli_en", split="test", languages=("ml", "ta")
        ),
        LocalTask(name="sinhala_news_rksk", data=root / "sinhala_news", split="test", languages=("en", "si")),
        LocalTask(name="sinhala_news_rksk", data=root / "sinhala_news", split="test", languages=("en", "si")),
        LocalTask(name="amazon_reviews", data=root / "amazon_reviews", split="test", languages=("en",)),
        LocalTask(name="sib200", data=root / "sib200", split="test", languages=("en", "si")),
    ]


@pytest.mark.parametrize("name", ["xnli", "indicxnli", "sinhala_news", "amazon_reviews", "sib200"])
def test_what_is_found_can_be_trained_and_evaluated_on(root, name):
    found = local_task(root, name)
    assert why_missing(root, name) == ""
    task = build_task(BuiltinTaskConfig(**found.task_keys))
    train, dev = task.load_training(TaskRows(dev_rows=1), seed=0)
    assert min(len(train), len(dev)) >= 1
    for code in found.languages:
        assert len(task.load(code, found.split)) >= 1


def test_a_sets_own_training_rows_and_test_split_come_first(root):
    write_rows(root / "xnli" / "en" / "train.jsonl", nli("train", "en"))
    write_rows(root / "xnli" / "sw" / "test.jsonl", nli("test", "sw"))
    found = local_task(root, "xnli")
    assert found == LocalTask(name="xnli", data=root / "xnli", split="test", languages=("sw",))
    assert found.task_keys == {"name": "xnli", "data": str(root / "xnli")}
    assert local_task(root, "indicxnli").train_data == root / "xnli"


def test_the_papers_own_news_set_comes_before_its_stand_in(root):
    write_rows(root / "sinhala_news" / "train_en.csv", [{"sentence": "a", "label": "Sports"}])
    write_rows(root / "sinhala_news" / "test_si.csv", [{"sentence": "b", "label": "Science"}])
    found = local_task(root, "sinhala_news")
    assert found == LocalTask(name="sinhala_news", data=root / "sinhala_news", split="test", languages=("si",))


def test_the_stand_in_may_have_a_folder_of_its_own(root):
    (root / "sinhala_news").rename(root / "sinhala_news_rksk")
    assert local_task(root, "sinhala_news").data == root / "sinhala_news_rksk"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sinhala_news_rksk"])
def test_what_is_not_there_is_none_and_says_so(tmp_path, name):
    assert local_task(tmp_path, name) is None
    assert why_missing(tmp_path, name) == f"Task {name}: no folder {name} in {tmp_path}."


def test_a_folder_without_evaluated_rows_or_english_says_which_is_missing(tmp_path):
    write_rows(tmp_path / "amazon_reviews" / "en" / "train.jsonl", [{"text": "a", "label": 0}])
    assert local_task(tmp_path, "amazon_reviews") is None
    assert "amazon_reviews has no test or dev file" in why_missing(tmp_path, "amazon_reviews")
    (tmp_path / "xnli").mkdir()
    (tmp_path / "xnli" / "dev-sw.tsv").write_text("p\th\tneutral\n")
    assert local_task(tmp_path, "xnli") is None
    assert why_missing(tmp_path, "xnli") == "Task xnli: no English rows to train on in xnli, nli_en."


def test_an_unknown_task_gets_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'xnli'"):
        local_task(tmp_path, "xnly")
