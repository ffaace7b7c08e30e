import json
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import BuiltinTaskConfig, EvaluationConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation import predict as predict_module
from layerbridge.evaluation.predict import evaluate_run, predict
from layerbridge.evaluation.predictions import predictions_path, read_predictions
from layerbridge.evaluation.run_folder import find_results, find_run
from layerbridge.results import config_sha256, read_results
from tests.evaluation.fakes import ANSWERS, SHA, FakeBridge, FakeTask, make_split

SAID = [("Sports", "Sports"), ("Sports", "Science"), ("Business", "x"), ("Science", "nan")] * 3


@pytest.fixture
def task():
    return FakeTask({"en": make_split("en", SAID), "si": make_split("si", SAID[:5]), "ta": make_split("ta", SAID[2:])})


@pytest.fixture
def bridge():
    return FakeBridge()


@pytest.fixture
def run(tmp_path, task, bridge, monkeypatch):
    """A finished run of the fakes; `bridge` and `task` are what it loads."""
    folder = tmp_path / "runs" / "demo"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "bridge.safetensors").write_text("")
    recipe = {"name": "demo", "task": {"name": "news"}, "evaluation": {"batch_size": 4}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = {"status": "finished", "languages_seen": ["English"], "seed": 7}
    (folder / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(predict_module, "_build_task", lambda config: task)
    monkeypatch.setattr(predict_module, "_load_bridge", lambda path, **options: bridge)
    return folder


# predict


@given(
    said=st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from([*ANSWERS, "x"])), min_size=1, max_size=20),
    batch_size=st.integers(1, 7),
    limit=st.none() | st.integers(1, 25),
)
def test_predictions_keep_the_order_of_the_examples_whatever_the_batches(said, batch_size, limit):
    split = make_split("si", said)
    config = EvaluationConfig(batch_size=batch_size, limit=limit)
    found = list(predict(FakeBridge(), FakeTask({}), "si", split, config))
    assert [row.id for row in found] == [example.id for example in split.examples[:limit]]
    assert [(row.answer, row.generated.strip()) for row in found] == said[:limit]
    assert found == list(predict(FakeBridge(), FakeTask({}), "si", split, EvaluationConfig(limit=limit)))


def test_batches_are_made_by_length_longest_first(bridge, task):
    config = EvaluationConfig(batch_size=4, methods=("score",), max_source_tokens=77)
    done = []
    list(predict(bridge, task, "en", task.load("en", "test"), config, on_batch=done.append))
    lengths = [len(text.split()) for batch in bridge.batches for text in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert done == [4, 4, 4]
    assert bridge.source_limits == {77}


def test_texts_over_the_limit_are_marked_truncated(bridge, task):
    config = EvaluationConfig(max_source_tokens=5)
    found = list(predict(bridge, task, "en", task.load("en", "test"), config))
    assert {row.source_tokens for row in found} == {3, 4, 5, 6, 7}
    assert all(row.truncated == (row.source_tokens > 5) for row in found)


def test_a_log_probability_that_is_not_a_number_gives_no_answer(bridge, task):
    found = list(predict(bridge, task, "en", task.load("en", "test"), EvaluationConfig()))
    assert found[3].scored is None
    assert set(found[3].log_probs.values()) == {None}


@pytest.mark.parametrize("method", ["score", "generate"])
def test_only_the_methods_asked_for_run(bridge, task, method):
    found = list(predict(bridge, task, "en", task.load("en", "test"), EvaluationConfig(methods=(method,))))
    assert (found[0].log_probs is None, found[0].generated is None) == (
        method != "score",
        method != "generate",
    )
    assert len(bridge.batches) == 1


def test_free_text_is_generated_only(bridge):
    task = FakeTask({"en": make_split("en", SAID)}, answers=None)
    found = list(predict(bridge, task, "en", task.load("en", "test"), EvaluationConfig()))
    assert all(row.log_probs is None and row.scored is None for row in found)
    with pytest.raises(ConfigError, match="'news' is free text, which cannot be scored"):
        list(predict(bridge, task, "en", task.load("en", "test"), EvaluationConfig(methods=("score",))))
    with pytest.raises(ConfigError, match="No method"):
        list(predict(bridge, task, "en", task.load("en", "test"), EvaluationConfig(methods=())))


def test_a_gold_answer_the_task_lacks_is_named(bridge, task):
    with pytest.raises(DataError, match=r"news, si, example 'si-0': the gold answer 'Weather' is none of Business"):
        list(predict(bridge, task, "si", make_split("si", [("Weather", "x")]), EvaluationConfig()))


# evaluate_run


def test_an_evaluation_writes_predictions_and_results_where_the_contract_says(run, bridge):
    results = evaluate_run(run)
    folder = run / "evaluation" / "news-test"
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [
        "en.jsonl",
        "si.jsonl",
        "ta.jsonl",
    ]
    assert read_results(find_results(run)) == results
    assert results.languages["en"].n == 12
    assert results.languages["en"].methods["score"].correct == 3
    assert results.languages["en"].methods["score"].unreadable == 3
    assert results.languages["en"].methods["generate"].correct == 3
    assert results.languages["en"].methods["generate"].unreadable == 6
    origin = results.provenance
    assert (origin.run, origin.seed, origin.languages_seen) == ("demo", 7, ("en",))
    assert (origin.checkpoint_sha256, origin.config_sha256) == (SHA["a"], config_sha256(bridge.config))
    assert origin.bases["encoder"].name == "local:tiny"
    assert max(len(batch) for batch in bridge.batches) == 4


def test_a_limited_evaluation_has_its_own_folder(run):
    results = evaluate_run(run, config=EvaluationConfig(limit=2, languages=("si",)))
    assert results.languages["si"].n == 2
    assert find_results(run, "news-test-first-2").is_file()


def test_finished_predictions_are_used_again(run, bridge):
    first = evaluate_run(run)
    bridge.batches.clear()
    assert evaluate_run(run) == first
    assert bridge.batches == []


@pytest.mark.parametrize(
    "change",
    [
        {"max_source_tokens": 99},
        {"max_new_tokens": 9},
        {"methods": ("score",)},
        {"split": "dev"},
        {"limit": 3},
        "checkpoint",
        "version",
        "seed",
    ],
)
def test_predictions_are_used_again_only_if_everything_matches(run, tmp_path, bridge, task, change):
    out = tmp_path / "out"
    evaluate_run(run, out=out)
    bridge.batches.clear()
    config = None
    if change == "checkpoint":
        bridge.fingerprint_ = SHA["f"]
    elif change == "version":
        task.version = 2
    elif change == "seed":
        (run / "run.json").write_text(json.dumps({"languages_seen": ["en"], "seed": 8}))
    else:
        config = EvaluationConfig(**change)
    evaluate_run(run, config=config, out=out)
    assert {text.split()[0] for batch in bridge.batches for text in batch} == {"en", "si", "ta"}


def test_only_the_language_whose_data_changed_is_predicted_again(run, bridge, task):
    evaluate_run(run)
    bridge.batches.clear()
    task.splits_by_language["si"] = make_split("si", SAID[:6])
    assert evaluate_run(run).languages["si"].n == 6
    assert {text.split()[0] for batch in bridge.batches for text in batch} == {"si"}


def test_a_damaged_predictions_file_is_made_again(run, bridge):
    first = evaluate_run(run)
    path = predictions_path(run / "evaluation" / "news-test", "si")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    bridge.batches.clear()
    assert evaluate_run(run).languages == first.languages
    assert {text.split()[0] for batch in bridge.batches for text in batch} == {"si"}


def test_a_kill_between_languages_keeps_the_finished_ones(run, bridge):
    bridge.fail_on = "si "
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run)
    folder = run / "evaluation" / "news-test"
    assert [path.name for path in (folder / "predictions").iterdir()] == ["en.jsonl"]
    assert not (folder / "results.json").exists()
    bridge.fail_on = None
    bridge.batches.clear()
    assert set(evaluate_run(run).languages) == {"en", "si", "ta"}
    assert {text.split()[0] for batch in bridge.batches for text in batch} == {"si", "ta"}


def test_languages_evaluated_one_after_another_end_in_one_results_file(run):
    evaluate_run(run, config=EvaluationConfig(languages=("si",)))
    results = evaluate_run(run, config=EvaluationConfig(languages=("ta", "ta")))
    assert set(results.languages) == {"si", "ta"}


def test_a_language_given_by_name_is_kept_by_its_code(run):
    results = evaluate_run(run, config=EvaluationConfig(languages=("Sinhala", "si")))
    assert set(results.languages) == {"si"}
    assert predictions_path(run / "evaluation" / "news-test", "si").is_file()


def test_predictions_of_another_checkpoint_stay_out_of_the_results(run, bridge):
    evaluate_run(run, config=EvaluationConfig(languages=("si",)))
    bridge.fingerprint_ = SHA["f"]
    assert set(evaluate_run(run, config=EvaluationConfig(languages=("ta",))).languages) == {"ta"}


def test_the_header_says_where_the_data_came_from(run, task):
    evaluate_run(run)
    header, rows = read_predictions(predictions_path(run / "evaluation" / "news-test", "si"))
    assert (header.data_source, header.data_sha256) == ("local:news", task.splits_by_language["si"].sha256)
    assert header.n == len(rows) == 5
    assert str(run) not in (run / "evaluation" / "news-test" / "predictions" / "si.jsonl").read_text()


def test_a_language_without_rows_is_an_error_before_the_bridge_is_loaded(run, task, monkeypatch):
    monkeypatch.setattr(predict_module, "_load_bridge", lambda *arguments, **options: pytest.fail("loaded"))
    task.splits_by_language["ta"] = make_split("ta", [])
    with pytest.raises(DataError, match="news, ta, split 'test' has no rows"):
        evaluate_run(run)
    with pytest.raises(ConfigError, match="No language to evaluate"):
        evaluate_run(run, config=EvaluationConfig(languages=()))


def test_a_checkpoint_without_a_run_leaves_unknown_what_it_does_not_say(run, tmp_path, bridge):
    bare = tmp_path / "bare"
    shutil.copytree(run / "checkpoint", bare)
    with pytest.raises(ConfigError, match="name a task with --task"):
        evaluate_run(bare)
    origin = evaluate_run(bare, task_config=BuiltinTaskConfig(name="news")).provenance
    assert (origin.run, origin.seed, origin.languages_seen, origin.setup_sha256) == ("bare", None, None, None)
    bridge.trained_on = {"languages": ["English"]}
    assert evaluate_run(bare, task_config=BuiltinTaskConfig(name="news")).provenance.languages_seen == ("en",)


def test_progress_shows_each_language_on_stderr(run, capfd):
    evaluate_run(run, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "12/12" in captured.err
    assert "si" in captured.err


# Run folders


def test_the_checkpoint_folder_of_a_run_is_the_run(run):
    assert find_run(run / "checkpoint").name == find_run(str(run)).name == "demo"


def test_a_run_without_run_json_takes_seed_and_languages_from_its_recipe(run):
    (run / "run.json").unlink()
    found = find_run(run)
    assert (found.seed, found.languages_seen) == (0, ("en",))


def test_folders_that_are_no_run_are_named(run, tmp_path):
    with pytest.raises(ConfigError, match="No run or checkpoint at"):
        find_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither a run"):
        find_run(tmp_path / "empty")
    (run / "run.json").write_text("[]")
    with pytest.raises(DataError, match="holds list"):
        find_run(run)
    (run / "run.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        find_run(run)


def test_a_run_without_a_checkpoint_is_named(run):
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(ConfigError, match="'demo' has no checkpoint"):
        evaluate_run(run)


def test_tasks_are_chosen_from_the_recipe_or_by_name(run):
    found = find_run(run)
    assert found.choose_task(None) == found.recipe.task
    assert found.choose_task("news", "there").data == "there"
    assert found.choose_task("xnli", None) == BuiltinTaskConfig(name="xnli")


def test_data_for_a_task_of_ones_own_is_refused(run):
    own = {"name": "mine", "files": {"train": "a.csv"}, "encoder_prompt": "{text}", "answer_column": "label"}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"name": "demo", "task": own}))
    with pytest.raises(ConfigError, match="'mine' names its own files"):
        find_run(run).choose_task(None, "there")
