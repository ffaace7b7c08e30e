import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from layerbridge.atomic import replace_text
from layerbridge.config import BridgeConfig, Recipe
from layerbridge.errors import DataError
from layerbridge.results import (
    FORMAT_VERSION,
    config_sha256,
    read_results,
    setup_sha256,
    write_results,
)
from tests.evaluation.fakes import make_language, make_results

RECIPE = {"name": "a", "task": {"name": "news", "data": "here"}}


def recipe(**changes):
    return Recipe.model_validate(RECIPE | changes)


def test_results_survive_the_file(tmp_path):
    results = make_results()
    write_results(results, tmp_path / "deep" / "results.json")
    assert read_results(tmp_path / "deep" / "results.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_the_file_says_its_format_time_zone_and_averages(tmp_path):
    write_results(make_results(), tmp_path / "results.json")
    data = json.loads((tmp_path / "results.json").read_text())
    assert (data["format"], data["version"]) == ("layerbridge-results", FORMAT_VERSION)
    assert data["created"] == "2025-03-01T12:00:00Z"
    assert data["averages"]["score"]["zero_shot"] == pytest.approx(0.55)
    assert data["averages"]["majority"]["all"] == pytest.approx(0.4)


def test_zero_shot_average_is_kept_apart_from_the_seen_one():
    averages = make_results().averages("score")
    assert averages.all == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert averages.seen == pytest.approx(0.8)
    assert averages.zero_shot == pytest.approx(0.55)


def test_averages_are_none_where_unknown_or_empty():
    unknown = make_results(languages_seen=None).averages("score")
    assert (unknown.seen, unknown.zero_shot) == (None, None)
    assert make_results(languages_seen=("en", "si", "ta")).averages("score").zero_shot is None


@given(n=st.integers(1, 10_000), data=st.data())
def test_accuracy_lies_between_0_and_1(n, data):
    correct = data.draw(st.integers(0, n))
    score = make_language(
        n=n,
        methods={"score": {"correct": correct, "unreadable": data.draw(st.integers(0, n - correct))}},
        majority_correct=data.draw(st.integers(1, n)),
    )
    assert 0 <= score.accuracy("score") <= 1
    assert 0 <= score.unreadable_fraction("score") <= 1 - score.accuracy("score") + 1e-12
    assert 0 < score.majority_accuracy <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"score": {"correct": 8, "unreadable": 3}}}, "8 correct and 3 unreadable of 10"),
        ({"truncated": 11}, "truncated is 11 of 10"),
        ({"majority_correct": 11}, "majority_correct is 11 of 10"),
        ({"n": 0, "methods": {}}, "greater than or equal to 1"),
    ],
)
def test_counts_that_clash_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        make_language(**changes)


def test_a_language_without_a_method_of_the_evaluation_is_refused():
    languages = {
        "en": make_language(),
        "si": make_language(methods={"score": {"correct": 1, "unreadable": 0}}),
    }
    with pytest.raises(ValidationError, match="language si has the methods score"):
        make_results(languages)


def change(**changes):
    def apply(data):
        return data | changes

    return apply


def change_count(data):
    data["languages"]["si"]["methods"]["score"]["correct"] += 1
    return data


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: [data], "names no format"),
        (change(format="other"), "its format is 'other'"),
        (change(version=99), f"version 99; this layerbridge reads version {FORMAT_VERSION}"),
        (change(version=None), "version None"),
        (change(extra=1), "extra: Extra inputs"),
        (change(created="2025-03-01T12:00:00"), "created: .*timezone"),
        (change(languages={}), "languages: "),
        (
            lambda data: {key: value for key, value in data.items() if key != "provenance"},
            "provenance: Field required",
        ),
        (change_count, "averages do not follow from the counts"),
        (change(averages={}), "averages do not follow from the counts"),
    ],
)
def test_reading_names_what_is_wrong(tmp_path, edit, words):
    path = tmp_path / "results.json"
    write_results(make_results(), path)
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=words):
        read_results(path)


def test_reading_names_a_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(DataError, match="No results at"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_results(tmp_path / "results.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    replace_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_config_hash_is_of_the_bridge_part_alone():
    bridge = BridgeConfig.model_validate({"fusion": "last_layer"})
    assert config_sha256(bridge) == config_sha256(recipe(fusion="last_layer"))
    assert config_sha256(bridge) == config_sha256(recipe(fusion="last_layer", training={"learning_rate": 1}))
    assert config_sha256(bridge) != config_sha256(BridgeConfig())
    assert len(config_sha256(bridge)) == 64


def test_setup_hash_ignores_the_seed_and_sees_the_rest():
    same = [
        recipe(name="b"),
        recipe(training={"seed": 3, "micro_batch_size": 1}),
        recipe(evaluation={"limit": 5}),
        recipe(task={"name": "news", "data": "there"}),
    ]
    other = [
        recipe(fusion="last_layer"),
        recipe(training={"learning_rate": 1e-4}),
        recipe(task={"name": "news", "max_train_rows": 9}),
        recipe(task={"name": "reviews"}),
    ]
    assert {setup_sha256(found) for found in same} == {setup_sha256(recipe())}
    assert len({setup_sha256(found) for found in [recipe(), *other]}) == 5


def test_setup_hash_of_train_data_ignores_its_folder_but_not_its_name():
    def xnli(**task):
        return setup_sha256(recipe(task={"name": "xnli", **task}))

    assert xnli(train_data="a/nli_en") == xnli(train_data="/b/nli_en", data="c")
    assert len({xnli(), xnli(train_data="a/nli_en"), xnli(train_data="a/more")}) == 3


def test_options_that_came_later_leave_the_hashes_of_earlier_results_alone():
    def digest(data):
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    bridge = BridgeConfig.model_validate({"fusion": "last_layer"})
    parts = ("encoder", "llm", "fusion", "projector", "prompt")
    assert config_sha256(bridge) == digest(bridge.model_dump(mode="json", include=set(parts)))
    assert config_sha256(bridge) != config_sha256(bridge.model_copy(update={"boundary": "random"}))
    # The hashes that the first version wrote for this recipe.
    before = Recipe(name="x", task={"name": "xnli", "dev_rows": 3}, fusion={"name": "last_layer"})
    assert setup_sha256(before) == "4d3a5d08bd1fe8073f91e6a313dd5244cfea676c3bbaa4f8b0ffd4684d0cce73"
    assert config_sha256(before.bridge) == "288847c77481d6fbfbc1e4e028381b66f0830065d29918852a87dc99b311e9cd"
    for later in (
        {"boundary": "random"},
        {"pooling": {"name": "mean", "size": None}},
        {"training": {"group_by_length": True}},
        {"training": {"fusion_learning_rate": 1e-4}},
        {"task": {"name": "xnli", "dev_rows": 3, "rows_seed": 0}},
    ):
        changed = Recipe.model_validate(before.model_dump() | later)
        assert setup_sha256(changed) != setup_sha256(before)


@pytest.mark.parametrize(
    ("fusion", "setup", "bridge", "later"),
    [
        ({"name": "layer_mean"}, "c3c1340f167e", "951cac15ca84", ()),
        ({"name": "global_softmax"}, "e37c7195296f", "97de8a4dff1b", ("weights", "heads")),
        ({"name": "global_softmax", "temperature": 0.5}, "eaf9e094d1ad", "e5b0fea22998", ("weights", "heads")),
        ({"name": "global_softmax_published"}, "10cb14eb7644", "5f7ecce13dc1", ()),
        ({"name": "transformer_softmax"}, "87408a68fda2", "82157b4c69db", ("weights", "temperature")),
        ({"name": "attention_pool"}, "57f2d3f31bed", "4faaf9e64cab", ("weights", "temperature", "heads")),
    ],
    ids=str,
)
def test_options_of_fusions_leave_the_hashes_from_before_them_alone(fusion, setup, bridge, later):
    """The hashes that were written before there were any."""

    def made(**more):
        return Recipe(name="x", task={"name": "xnli", "dev_rows": 3}, fusion=fusion | more)

    assert setup_sha256(made()).startswith(setup)
    assert config_sha256(made().bridge).startswith(bridge)
    values = {"weights": "entmax15", "temperature": 0.7, "heads": 2}
    found = {setup_sha256(made(**{option: values[option]})) for option in later}
    assert len(found | {setup_sha256(made())}) == len(later) + 1


def test_setup_hash_of_own_files_ignores_their_folder():
    def own(folder, train="train.csv"):
        return recipe(
            task={
                "name": "mine",
                "files": {"train": f"{folder}/{train}", "test": {"si": f"{folder}/si.csv"}},
                "encoder_prompt": "{text}",
                "answer_column": "label",
            }
        )

    assert setup_sha256(own("a")) == setup_sha256(own("b"))
    assert setup_sha256(own("a")) != setup_sha256(own("a", "more.csv"))


def test_results_and_evaluation_import_no_torch():
    code = (
        "import sys, layerbridge.results, layerbridge.evaluation.score, layerbridge.evaluation.render, "
        "layerbridge.evaluation.predict; "
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_time_is_kept_in_utc(tmp_path):
    results = make_results(created=datetime(2025, 1, 1, tzinfo=UTC))
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json").created.utcoffset().total_seconds() == 0
