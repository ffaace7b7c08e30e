"""Against real files, where `LAYERBRIDGE_DATA` names the folder that holds them."""

import os
from collections import Counter
from pathlib import Path

import pytest

from layerbridge.config import BuiltinTaskConfig, TaskRows
from layerbridge.data.local import local_task
from layerbridge.data.tasks import build_task

DATA = Path(os.environ.get("LAYERBRIDGE_DATA", "nowhere"))
SIB200 = ["ace-Arab", "am", "ar", "bn", "de", "el", "en", "es", "fr", "gu", "hi", "ja", "kn", "ko", "ml", "mr"]
SIB200 += ["ne", "or", "pa", "ru", "si", "sw", "ta", "te", "th", "ur", "zh-Hant"]

pytestmark = pytest.mark.skipif("LAYERBRIDGE_DATA" not in os.environ, reason="LAYERBRIDGE_DATA is not set")


@pytest.fixture(scope="module")
def sib200():
    if not (DATA / "sib200").is_dir():
        pytest.skip("no sib200 there")
    return build_task(BuiltinTaskConfig(name="sib200", data=str(DATA / "sib200")))


def test_there_are_27_languages_here():
    assert len(set(SIB200)) == 27


@pytest.mark.parametrize("code", SIB200)
def test_sib200_has_its_published_counts_and_parallel_ids(sib200, code):
    english = {split: sib200.load("en", split) for split in sib200.splits}
    for split, rows in (("train", 701), ("dev", 99), ("test", 204)):
        loaded = sib200.load(code, split)
        assert len(loaded) == rows
        assert {e.id: e.answer for e in loaded.examples} == {e.id: e.answer for e in english[split].examples}


def test_sib200_trains_on_english_with_its_own_dev(sib200):
    train, dev = sib200.load_training(TaskRows(), seed=0)
    assert (len(train), len(dev)) == (701, 99)
    assert train.source == dev.source == "local:sib200"


def test_xnli_dev_of_the_xtreme_release_is_balanced():
    if not (DATA / "xnli").is_dir():
        pytest.skip("no xnli there")
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(DATA / "xnli")))
    reports = [report for report in task.validate() if report.split == "dev"]
    assert [report.rows for report in reports] == [2490] * 15
    assert all(set(report.answers.values()) == {830} for report in reports)


@pytest.fixture(scope="module")
def xnli():
    found = local_task(DATA, "xnli")
    if found is None or found.train_data != DATA / "nli_en":
        pytest.skip("no xnli with nli_en there")
    return found


def test_xnli_trains_on_the_papers_number_of_rows_of_nli_en_and_on_none_it_is_evaluated_on(xnli):
    assert (xnli.split, len(xnli.languages)) == ("dev", 15)
    task = build_task(BuiltinTaskConfig(**xnli.task_keys))
    everything = task.load("en", "train")
    assert len(everything) == len({e.text for e in everything.examples}) == 125_776
    rows = TaskRows(dev_rows=1000, balance_classes=True, max_train_rows=98_999)
    train, dev = task.load_training(rows, seed=0)
    assert (len(train), len(dev)) == (98_999, 1000)
    assert sorted(Counter(e.answer for e in train.examples).values()) == [32_999, 33_000, 33_000]
    assert (train.source, dev.source) == ("local:nli_en", "local:nli_en (held out of train)")
    evaluated = {e.text for e in task.load("en", "dev").examples}
    assert not evaluated & {e.text for part in (train, dev) for e in part.examples}


def test_xnli_dev_is_counted_against_nli_en(xnli):
    reports = [r for r in build_task(BuiltinTaskConfig(**xnli.task_keys)).validate() if r.state != "missing"]
    assert [(r.split, r.state, r.in_train) for r in reports] == [("train", "ok", 0), *[("dev", "ok", 0)] * 15]


def test_sinhala_news_rksk_has_the_counts_that_its_docstring_names():
    found = local_task(DATA, "sinhala_news")
    if found is None or found.name != "sinhala_news_rksk":
        pytest.skip("no sinhala_news_rksk there")
    task = build_task(BuiltinTaskConfig(**found.task_keys))
    reports = {(r.language, r.split): r for r in task.validate()}
    counts = {where: (report.rows, set(report.answers.values())) for where, report in reports.items()}
    assert counts == {
        ("en", "train"): (300, {60}),
        ("en", "dev"): (100, {20}),
        ("en", "test"): (100, {20}),
        ("si", "test"): (500, {100}),
    }
    assert all(report.in_train == 0 for report in reports.values())
    texts = {where: Counter(e.text for e in task.load(*where).examples) for where in reports}
    assert {where: sum(n > 1 for n in found.values()) for where, found in texts.items()} == {
        ("en", "train"): 41,
        ("en", "dev"): 0,
        ("en", "test"): 0,
        ("si", "test"): 13,
    }
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 459 + 487
    train = [e for e in task.load("en", "train").examples if texts["en", "train"][e.text] > 1]
    assert len(train) == 82
    assert Counter(e.answer for e in train)["Local"] == 40
