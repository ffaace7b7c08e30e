"""Against real files, where `LAYERBRIDGE_DATA` names the folder that holds them."""

import os
from pathlib import Path

import pytest

from layerbridge.config import BuiltinTaskConfig, TaskRows
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
