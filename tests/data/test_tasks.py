"""Every built-in task, read from files in its hub set's own schema, by the hub's path and from a folder."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import BuiltinTaskConfig, TaskRows
from layerbridge.data.tasks import TASKS, build_task
from layerbridge.data.tasks.source import FolderSource
from layerbridge.errors import ConfigError, DataError
from layerbridge.languages import language
from tests.data.writers import write_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def nli(text, label):
    return {"premise": f"{text} one.", "hypothesis": f"{text} two.", "label": label}


def news(text, label):
    return {"sentence": text, "label": label}


def review(text, label):
    return {"id": f"id-{text}", "text": text, "label": label, "label_text": str(label)}


def story(text, label):
    return {"label": label, "text": text}


def topic(text, label):
    return {"index_id": f"7{len(text)}", "category": label, "text": text}


# task, file as on the hub, row maker, two labels, language, split -> two texts, two answers
HUB_FILES = [
    ("xnli", "sw/test-00000-of-00001.parquet", nli, (0, 2), ("sw", "test"), ("Entailment", "Contradiction")),
    ("xnli", "en/train-00000-of-00001.parquet", nli, (1, 0), ("en", "train"), ("Neutral", "Entailment")),
    ("xnli", "zh/validation-00000-of-00001.parquet", nli, (1, 0), ("zh", "dev"), ("Neutral", "Entailment")),
    ("indicxnli", "forward/test/xnli_ta.json", nli, (0, 2), ("ta", "test"), ("Entailment", "Contradiction")),
    ("indicxnli", "forward/dev/xnli_or.json", nli, (0, 1), ("or", "dev"), ("Entailment", "Neutral")),
    ("xnli", "en/train/0000.parquet", nli, (2, 1), ("en", "train"), ("Contradiction", "Neutral")),
    ("indicxnli", "forward/train/xnli_ta.json", nli, (2, 0), ("ta", "train"), ("Contradiction", "Entailment")),
    ("indicxnli", "ml/train/0000.parquet", nli, (2, 0), ("ml", "train"), ("Contradiction", "Entailment")),
    ("indicxnli", "ml/validation/0000.parquet", nli, (0, 1), ("ml", "dev"), ("Entailment", "Neutral")),
    ("indicxnli", "ml/indicxnli-test.parquet", nli, (0, 1), ("ml", "test"), ("Entailment", "Neutral")),
    *(
        ("sinhala_news", name, news, ("Sports", "Political"), ("si", "test"), ("Sports", "Political"))
        for name in ("data/test_si-00000-of-00001.parquet", "default/test_si/0000.parquet", "test_si.csv")
    ),
    (
        "sinhala_news",
        "data/train_en-00000-of-00001.parquet",
        news,
        ("Science", "Business"),
        ("en", "train"),
        None,
    ),
    ("amazon_reviews", "ja/test.jsonl", review, (0, 4), ("ja", "test"), ("Very Negative", "Very Positive")),
    ("amazon_reviews", "en/train.jsonl", review, (2, 3), ("en", "train"), ("Neutral", "Positive")),
    ("amazon_reviews", "zh/validation.jsonl", review, (0, 3), ("zh", "dev"), ("Very Negative", "Positive")),
    ("amazon_reviews", "en/train/0000.parquet", review, (4, 2), ("en", "train"), ("Very Positive", "Neutral")),
    ("amazon_reviews", "de/validation/0000.parquet", review, (0, 4), ("de", "dev"), ("Very Negative", "Very Positive")),
    ("amazon_reviews", "en/test/0000.parquet", review, (1, 3), ("en", "test"), ("Negative", "Positive")),
    (
        "sib200",
        "data/sin_Sinh/test.tsv",
        topic,
        ("travel", "science/technology"),
        ("si", "test"),
        ("Travel", "Science"),
    ),
    (
        "sib200",
        "data/zho_Hant/dev.tsv",
        topic,
        ("health", "sports"),
        ("zh-Hant", "dev"),
        ("Health", "Sports"),
    ),
]
IDS = [f"{case[0]}:{case[1]}" for case in HUB_FILES]
TEXTS = {
    "xnli": "Premise: a one. Hypothesis: a two. Label: ",
    "indicxnli": "Premise: a one. Hypothesis: a two. Label: ",
    "sinhala_news": "News Sentence: a Category: ",
    "sinhala_news_rksk": "News Sentence: a Category: ",
    "amazon_reviews": "Review: a Label: ",
    "sib200": "Sentence: a Topic: ",
    "headlines": "News Sentence: a Category: ",
}


def check(split, task, labels, answers, code):
    assert next(example.text for example in split.examples) == TEXTS[task]
    assert [example.answer for example in split.examples] == list(answers or labels)
    assert {example.language for example in split.examples} == {code}
    assert len({example.id for example in split.examples}) == 2


@pytest.mark.parametrize(("task", "file", "make", "labels", "where", "answers"), HUB_FILES, ids=IDS)
def test_a_hub_set_is_read_from_just_its_own_files(task, file, make, labels, where, answers, tmp_path, monkeypatch):
    snapshot = tmp_path / COMMIT
    write_rows(snapshot / file, [make("a", labels[0]), make("bb", labels[1])])
    write_rows(snapshot / "noise" / "train.jsonl", [{"x": 1}])
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    split = build_task(BuiltinTaskConfig(name=task, revision="some-branch")).load(*where)
    check(split, task, labels, answers, where[0])
    assert split.source == f"hub:{asked['repository']}@{COMMIT}"
    assert asked["repo_type"] == "dataset"
    assert asked["revision"] == "some-branch"
    assert any(Path(file).match(pattern) for pattern in asked["allow_patterns"])
    assert not any(pattern in ("*", "**", "*.parquet") for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(("task", "file", "make", "labels", "where", "answers"), HUB_FILES, ids=IDS)
def test_a_local_copy_of_a_hub_set_is_read_alike(task, file, make, labels, where, answers, tmp_path):
    write_rows(tmp_path / "copy" / file, [make("a", labels[0]), make("bb", labels[1])])
    split = build_task(BuiltinTaskConfig(name=task, data=str(tmp_path / "copy"))).load(*where)
    check(split, task, labels, answers, where[0])
    assert split.source == "local:copy"
    assert str(tmp_path) not in split.source


MAKERS = {
    "xnli": (nli, "0"),
    "indicxnli": (nli, "1"),
    "sinhala_news": (news, "sports"),
    "sinhala_news_rksk": (story, "sports"),
    "amazon_reviews": (review, "4"),
    "sib200": (topic, "geography"),
    "headlines": (lambda text, label: {"id": text, "category": label, "text": text}, "Science"),
}
LAYOUTS = [
    "{c}/test.tsv",
    "{c}/test.csv",
    "data/{c}/test.jsonl",
    "test-{c}.tsv.gz",
    "{c}.json",
    "{c}/test/0.parquet",
]


def test_every_task_has_a_row_maker_here():
    assert set(MAKERS) == set(TASKS) == set(TEXTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_reads_every_common_layout_by_our_language_codes(name, layout, tmp_path):
    make, label = MAKERS[name]
    code = TASKS[name]().languages[-1]
    write_rows(tmp_path / layout.format(c=code), [make("a", label), make("bb", label)])
    split = build_task(BuiltinTaskConfig(name=name, data=str(tmp_path))).load(code, "test")
    assert len(split) == 2
    assert split.examples[0].text == TEXTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete_and_consistent(name):
    task = TASKS[name]()
    assert task.name == name
    assert task.version >= 1
    assert task.title
    assert task.citation
    assert task.licence
    assert len(set(task.languages)) == len(task.languages)
    assert [language(code).code for code in task.languages] == list(task.languages)
    assert task.answers
    assert all(answer == answer.strip() for answer in task.answers)
    assert set((task.labels or {}).values()) <= set(task.answers)
    assert "test" in task.splits
    assert task.languages_of("test") == task.languages
    assert "en" in task.languages_of("train")
    assert task.encoder_prompt.endswith(" ")


def test_the_hub_is_not_a_hidden_default_of_a_local_task(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError):
        build_task(BuiltinTaskConfig(name="indicxnli", data=str(tmp_path))).load("en", "train")


def test_shards_are_read_in_order_and_numbered_on(tmp_path):
    for number in range(2):
        write_rows(tmp_path / f"en/test-0000{number}-of-00002.parquet", [nli(f"{number}{row}", 0) for row in "ab"])
    examples = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path))).load("en", "test").examples
    assert [example.id for example in examples] == ["1", "2", "3", "4"]
    assert [example.text[9:11] for example in examples] == ["0a", "0b", "1a", "1b"]


@pytest.mark.parametrize("label", [0, "0", 0.0, "entailment", "ENTAILMENT ", "Entailment"])
def test_a_label_may_be_a_number_or_a_word_in_any_case(label, tmp_path):
    write_rows(tmp_path / "test-en.jsonl", [nli("a", label)])
    split = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path))).load("en", "test")
    assert split.examples[0].answer == "Entailment"


def test_the_headerless_tsvs_of_xtreme_are_read(tmp_path):
    (tmp_path / "dev-th.tsv").write_text("p\th\tneutral\np2\th2\tcontradiction\n")
    split = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path))).load("th", "dev")
    assert [example.answer for example in split.examples] == ["Neutral", "Contradiction"]


def test_english_training_rows_of_indicxnli_are_those_of_xnli(tmp_path, monkeypatch):
    write_rows(tmp_path / "en" / "train-00000-of-00001.parquet", [nli("a", 0)])
    write_rows(tmp_path / "en" / "validation-00000-of-00001.parquet", [nli("b", 1)])
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    task = build_task(BuiltinTaskConfig(name="indicxnli"))
    train, dev = task.load_training(TaskRows(), seed=0)
    assert [len(train), len(dev)] == [1, 1]
    assert set(asked) == {"facebook/xnli"}
    assert "en" not in task.languages
    with pytest.raises(ConfigError, match="no test rows of language 'en'"):
        task.load("en", "test")


def test_the_parquet_branch_of_indicxnli_goes_with_xnlis_own_revision(tmp_path, monkeypatch):
    write_rows(tmp_path / "ta" / "test" / "0000.parquet", [nli("a", 0)])
    write_rows(tmp_path / "en" / "train-00000-of-00001.parquet", [nli("b", 1)])
    asked = {}

    def snapshot_download(name, *, revision, **_):
        asked[name] = revision
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    task = build_task(BuiltinTaskConfig(name="indicxnli", revision="refs/convert/parquet"))
    assert [len(task.load("ta", "test")), len(task.load("en", "train"))] == [1, 1]
    assert asked.pop("Divyanshu/indicxnli") == "refs/convert/parquet"
    assert asked == {"facebook/xnli": TASKS["xnli"]().source.revision}


def test_a_local_indicxnli_takes_english_from_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    write_rows(tmp_path / "forward" / "test" / "xnli_ta.json", [nli("a", 0)])
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "train.tsv").write_text("p\th\tneutral\tsource\np2\th2\tcontradiction\tsource\n")
    write_rows(tmp_path / "en" / "validation" / "0000.parquet", [nli("b", 1)])
    train, dev = build_task(BuiltinTaskConfig(name="indicxnli", data=str(tmp_path))).load_training(TaskRows(), seed=0)
    assert [example.answer for example in train.examples] == ["Neutral", "Contradiction"]
    assert [example.text for example in dev.examples] == ["Premise: b one. Hypothesis: b two. Label: "]


def test_amazon_reviews_in_the_hubs_parquet_schema_train_balanced(tmp_path):
    rows = [review(f"r{number}", number % 5) for number in range(50)] + [
        review(f"more{number}", 4) for number in range(9)
    ]
    write_rows(tmp_path / "en" / "train" / "0000.parquet", rows[:30])
    write_rows(tmp_path / "en" / "train" / "0001.parquet", rows[30:])
    write_rows(tmp_path / "en" / "validation" / "0000.parquet", [review("r0", 0), review("dev", 3)])
    task = build_task(BuiltinTaskConfig(name="amazon_reviews", data=str(tmp_path)))
    train, dev = task.load_training(TaskRows(balance_classes=True), seed=0)
    assert Counter(example.answer for example in train.examples) == dict.fromkeys(task.answers, 9)  # r0 is in dev
    assert [example.id for example in dev.examples] == ["id-r0", "id-dev"]


def test_one_file_counts_for_what_its_name_says_only(tmp_path):
    path = write_rows(tmp_path / "test-si.tsv", [topic("a", "travel")])
    task = build_task(BuiltinTaskConfig(name="sib200", data=str(path)))
    assert len(task.load("si", "test")) == 1
    assert task.load("Sinhala", "test").source == "local:test-si.tsv"
    for where in (("si", "train"), ("ta", "test")):
        with pytest.raises(DataError, match=r"its name does not say that it holds \w+ rows of language"):
            task.load(*where)
    nested = write_rows(tmp_path / "data" / "sin_Sinh" / "dev.tsv", [topic("a", "travel")])
    assert len(build_task(BuiltinTaskConfig(name="sib200", data=str(nested))).load("si", "dev")) == 1


def test_a_file_that_names_no_split_is_never_trained_on(tmp_path):
    write_rows(tmp_path / "en.jsonl", [nli("a", 0)])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path)))
    assert len(task.load("en", "test")) == 1
    with pytest.raises(DataError):
        task.load("en", "train")


@pytest.fixture(scope="module")
def local_xnli(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xnli")
    write_rows(folder / "en/train.jsonl", [nli(f"t{number % 90}", number % 3 % 2) for number in range(100)])
    write_rows(folder / "de/train.jsonl", [nli(f"d{number}", number % 3) for number in range(10)])
    write_rows(folder / "en/validation.jsonl", [nli("t3", 0), nli("dev", 1)])
    return build_task(BuiltinTaskConfig(name="xnli", data=str(folder)))


def test_training_is_in_english_with_the_sets_own_dev_unless_told_otherwise(local_xnli):
    train, dev = local_xnli.load_training(TaskRows(), seed=0)
    assert {example.language for example in train.examples} == {"en"}
    assert len(dev) == 2
    assert len(train) == 98  # t3 stands twice in train, and in dev
    train, _ = local_xnli.load_training(TaskRows(train_languages=("de", "English", "en"), dev_rows=5), seed=0)
    assert Counter(example.language for example in train.examples).keys() == {"de", "en"}


@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 3))
def test_no_text_of_dev_is_ever_trained_on(local_xnli, dev_rows, max_rows, seed):
    train, dev = local_xnli.load_training(TaskRows(dev_rows=dev_rows, max_train_rows=max_rows), seed=seed)
    assert len(dev) == dev_rows
    assert len(train) == min(max_rows, 100 - dev_rows)
    assert not {example.text for example in train.examples} & {example.text for example in dev.examples}
    assert dev.source.endswith("(held out of train)")
    again = local_xnli.load_training(TaskRows(dev_rows=dev_rows, max_train_rows=max_rows), seed=seed)
    assert (train, dev) == again


def test_dev_rows_are_the_same_whatever_is_done_to_the_rest(tmp_path):
    write_rows(tmp_path / "en/train.jsonl", [nli(f"t{number}", number % 3) for number in range(60)])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path)))
    devs = [
        task.load_training(TaskRows(dev_rows=9, **options), seed=4)[1].sha256
        for options in ({}, {"balance_classes": True}, {"balance_classes": True, "max_train_rows": 11})
    ]
    assert len(set(devs)) == 1
    train, _ = task.load_training(TaskRows(dev_rows=9, balance_classes=True, max_train_rows=11), seed=4)
    assert sorted(Counter(example.answer for example in train.examples).values()) == [3, 4, 4]


def test_a_task_without_dev_has_an_empty_one(tmp_path):
    write_rows(tmp_path / "train_en.csv", [news(str(number), "Sports") for number in range(4)])
    train, dev = build_task(BuiltinTaskConfig(name="sinhala_news", data=str(tmp_path))).load_training(
        TaskRows(), seed=0
    )
    assert (len(train), len(dev)) == (4, 0)


def test_validate_counts_what_is_there_and_names_what_is_not(tmp_path):
    write_rows(tmp_path / "train_en.csv", [news("a", "Sports"), news("b", "Sports")])
    write_rows(tmp_path / "test_en.csv", [news("a", "Sports"), news("c", "Science")])
    reports = build_task(BuiltinTaskConfig(name="sinhala_news", data=str(tmp_path))).validate()
    assert [(report.split, report.language, report.state, report.rows) for report in reports] == [
        ("train", "en", "ok", 2),
        ("test", "en", "ok", 2),
        ("test", "si", "missing", 0),
    ]
    assert reports[1].answers == {
        "Business": 0,
        "Entertainment": 0,
        "Political": 0,
        "Sports": 1,
        "Science": 1,
    }
    assert reports[1].in_train == 1
    assert "Looked for" in reports[2].problem
    (tmp_path / "test_si.csv").write_text("sentence,label\nx,Sprots\n")
    fresh = build_task(BuiltinTaskConfig(name="sinhala_news", data=str(tmp_path)))
    assert [report.state for report in fresh.validate(["si"])] == ["wrong"]


def test_the_embedded_benchmark_says_that_it_is_for_smoke_tests_only():
    task = TASKS["headlines"]()
    assert "smoke" in task.title
    assert task.source.label == "package:headlines"


def test_the_embedded_benchmark_is_whole():
    task = TASKS["headlines"]()
    reports = task.validate()
    assert [report.problem for report in reports if report.state != "ok"] == []
    tests = {code: task.load(code, "test") for code in task.languages}
    assert len({tuple((e.id, e.answer) for e in split.examples) for split in tests.values()}) == 1  # parallel
    train, dev = task.load_training(TaskRows(balance_classes=True), seed=0)
    assert len(set(Counter(example.answer for example in train.examples).values())) == 1
    assert len(dev) > 0
    assert train.source == "package:headlines"


def test_a_copy_of_the_package_data_gives_the_same_hash(tmp_path):
    task = TASKS["headlines"]()
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "dev.tsv").write_bytes((task.source.path / "en" / "dev.tsv").read_bytes())
    copy = replace(task, source=FolderSource(path=tmp_path))
    assert copy.load("en", "dev").sha256 == task.load("en", "dev").sha256


def test_the_hash_does_not_depend_on_the_format(tmp_path):
    rows = [topic("a", "travel"), topic("bb", "sports")]
    hashes = set()
    for ending in ("tsv", "csv", "json", "jsonl", "parquet", "tsv.gz"):
        write_rows(tmp_path / ending / f"test-si.{ending}", rows)
        task = build_task(BuiltinTaskConfig(name="sib200", data=str(tmp_path / ending)))
        hashes.add(task.load("si", "test").sha256)
    assert len(hashes) == 1


def test_indicxnli_takes_the_one_list_of_its_json(tmp_path):
    path = tmp_path / "forward" / "test" / "xnli_bn.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"test": [nli("a", 0), nli("b", 1)]}))
    assert len(build_task(BuiltinTaskConfig(name="indicxnli", data=str(tmp_path))).load("bn", "test")) == 2
