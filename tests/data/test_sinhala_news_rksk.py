"""One file without splits, divided by a hash of the text: what the measuring set has, in files of our own."""

import random
from collections import Counter

import pytest
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.config import BuiltinTaskConfig, TaskRows
from layerbridge.data.tasks import TASKS, build_task

CLASSES = ("business", "entertainment", "local", "sports", "world")


def write_news(folder, *, repeated=4, shuffle=None):
    """Write 20 stories a class in both languages; the first `repeated` of business stand under local again."""
    folder.mkdir(exist_ok=True)
    for name in ("english", "sinhala"):
        stories = {label: [f'{name} "{label}" story {n}' for n in range(20)] for label in CLASSES}
        stories["local"][:repeated] = stories["business"][:repeated]
        rows = [f"{label}\t{text}\n" for label in CLASSES for text in stories[label]]
        if shuffle is not None:
            random.Random(shuffle).shuffle(rows)
        (folder / f"{name}.tsv").write_text("".join(rows))
    return folder


def news(folder):
    return build_task(BuiltinTaskConfig(name="sinhala_news_rksk", data=str(folder)))


@pytest.fixture
def task(tmp_path):
    return news(write_news(tmp_path / "news"))


def test_english_has_three_splits_in_equal_classes_and_sinhala_is_all_test(task):
    counts = {}
    for report in task.validate():
        assert (report.state, report.in_train) == ("ok", 0)
        counts[report.language, report.split] = set(report.answers.values())
    assert counts == {("en", "train"): {12}, ("en", "dev"): {4}, ("en", "test"): {4}, ("si", "test"): {20}}


def test_a_story_that_stands_there_twice_is_in_train_alone(task):
    sides = {split: Counter(e.text for e in task.load("en", split).examples) for split in task.splits}
    assert sum(count == 2 for count in sides["train"].values()) == 4
    assert set(sides["dev"].values()) == set(sides["test"].values()) == {1}
    assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == 96


def test_the_splits_do_not_depend_on_the_order_of_the_rows(task, tmp_path):
    shuffled = news(write_news(tmp_path / "shuffled", shuffle=3))
    for split in task.splits:
        texts = {e.text for e in task.load("en", split).examples}
        assert texts == {e.text for e in shuffled.load("en", split).examples}


def test_a_rows_id_is_its_number_in_the_file(task):
    ids = [int(e.id) for split in task.splits for e in task.load("en", split).examples]
    assert sorted(ids) == list(range(1, 101))


def test_it_trains_with_its_own_dev(task):
    train, dev = task.load_training(TaskRows(balance_classes=True), seed=0)
    assert (len(train), len(dev)) == (60, 20)
    assert train.source == dev.source == "local:news"
    assert train.examples[0].text.startswith("News Sentence: ")


def test_one_file_of_it_counts_for_its_language(tmp_path):
    folder = write_news(tmp_path / "news")
    english = news(folder / "english.tsv")
    assert [len(english.load("en", split)) for split in english.splits] == [60, 20, 20]
    with pytest.raises(Exception, match="does not say that it holds test rows of language 'si'"):
        english.load("si", "test")
    assert len(news(folder / "sinhala.tsv").load("si", "test")) == 100


def test_files_that_name_their_split_are_not_divided(tmp_path):
    (tmp_path / "test-en.tsv").write_text("label\ttext\nlocal\tx\nlocal\ty\n")
    assert len(news(tmp_path).load("en", "test")) == 2


def test_it_says_that_it_stands_in_and_has_answers_of_its_own():
    task = TASKS["sinhala_news_rksk"]()
    assert "stands in for sinhala_news" in task.title
    assert task.answers == ("Business", "Entertainment", "Local", "Sports", "World")
    assert task.answers != TASKS["sinhala_news"]().answers


def test_the_command_line_says_that_it_wants_a_folder():
    output = CliRunner().invoke(app, ["tasks", "show", "sinhala_news_rksk"]).output
    assert "none: name a folder with --data" in output
    assert "none: the data is in the package" in CliRunner().invoke(app, ["tasks", "show", "headlines"]).output
