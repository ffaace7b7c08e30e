"""Which split a study's tasks are evaluated on: the one that is said, and never rows that choose a step."""

import pytest

from layerbridge.errors import ConfigError
from layerbridge.studies.inputs import InputCache, find_tasks
from layerbridge.studies.study import jobs_of, load_study
from tests.data.test_local import write_all
from tests.data.writers import write_rows
from tests.studies.grid import write_study

TRAINING = {"select": "last", "max_source_tokens": 48}


@pytest.fixture
def root(tmp_path):
    return write_all(tmp_path / "sets")


def plan(tmp_path, tiny_models, data, tasks, **defaults):
    """Return the tasks found, those left out, and what each cell reads."""
    defaults = {"training": TRAINING, **defaults}
    study = load_study(str(write_study(tmp_path, tiny_models, tasks=tasks, defaults=defaults)))
    _, pair = study.pair(None)
    found, left_out = find_tasks(study, pair, data)
    cache = InputCache()
    read = {job.task: cache.of(job.recipe) for job in jobs_of(study, pair, found) if job.kind == "bridge"}
    return found, left_out, read


@pytest.mark.parametrize(("asked", "texts"), [({}, "test"), ({"split": "test"}, "test"), ({"split": "dev"}, "dev")])
def test_a_task_is_evaluated_on_the_split_that_is_said(tmp_path, tiny_models, root, asked, texts):
    found, left_out, read = plan(tmp_path, tiny_models, root, {"sib200": {"evaluation": asked}})
    assert left_out == {}
    assert found["sib200"]["evaluation"] == {"split": texts, "languages": ["en", "si"]}
    for split in read["sib200"].splits.values():
        assert all(f" {texts} " in f" {example.text} " for example in split.examples)


def test_where_a_split_is_asked_for_that_is_not_there_no_other_is_taken(tmp_path, tiny_models, root):
    for file in root.glob("sib200/*/dev.tsv"):
        file.unlink()
    tasks = {"sib200": {"evaluation": {"split": "dev"}}, "amazon_reviews": {}}
    found, left_out, _ = plan(tmp_path, tiny_models, root, tasks)
    assert set(found) == {"amazon_reviews"}
    assert left_out == {"sib200": "Task sib200: sib200 has no dev file of its languages."}


def test_dev_of_the_news_set_is_english_alone(tmp_path, tiny_models, root):
    found, _, _ = plan(tmp_path, tiny_models, root, {"sinhala_news_rksk": {"evaluation": {"split": "dev"}}})
    assert found["sinhala_news_rksk"]["evaluation"] == {"split": "dev", "languages": ["en"]}


@pytest.mark.parametrize("split", ["dev", "held_out"])
def test_rows_that_choose_the_step_are_not_evaluated(tmp_path, tiny_models, root, split):
    tasks = {"sib200": {"evaluation": {"split": split}, "task": {"dev_rows": 0 if split == "dev" else 1}}}
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, tiny_models, root, tasks, training={"select": "best"})
    assert f"its {split} rows are to be evaluated, and they choose the best step" in str(error.value)
    assert "training.select: last" in str(error.value)


def test_one_set_up_that_chooses_its_step_on_evaluated_rows_is_enough_to_refuse(tmp_path, tiny_models, root):
    set_ups = {"last_layer": {"fusion": "last_layer"}, "x": {"fusion": "layer_mean", "training": {"select": "best"}}}
    path = write_study(
        tmp_path, tiny_models, tasks={"sib200": {"evaluation": {"split": "dev"}}}, set_ups=set_ups,
        defaults={"training": TRAINING},
    )  # fmt: skip
    study = load_study(str(path))
    for data in (root, None):
        with pytest.raises(ConfigError, match="they choose the best step"):
            find_tasks(study, study.pair(None)[1], data)


def test_dev_may_be_evaluated_where_other_rows_choose_the_step(tmp_path, tiny_models, root):
    tasks = {"sib200": {"evaluation": {"split": "dev"}, "task": {"dev_rows": 1}}}
    _, left_out, read = plan(tmp_path, tiny_models, root, tasks, training={"select": "best"})
    assert left_out == {}
    assert {example.text for example in read["sib200"].dev.examples} < {
        f"Sentence: train {n} Topic: " for n in range(3)
    }


def test_held_out_rows_are_those_set_aside_in_the_training_languages(tmp_path, tiny_models, root):
    write_rows(root / "xnli/en/test.jsonl", [{"premise": "t", "hypothesis": "h", "label": 0}])
    keys = {"evaluation": {"split": "held_out"}, "task": {"dev_rows": 3, "rows_seed": 0}}
    found, left_out, read = plan(tmp_path, tiny_models, root, {"xnli": keys})
    assert left_out == {}
    assert "evaluation" not in found["xnli"]
    inputs = read["xnli"]
    assert set(inputs.splits) == {"en"}
    assert inputs.splits["en"].examples == inputs.dev.examples
    assert len(inputs.dev) == 3
    assert not {e.text for e in inputs.dev.examples} & {e.text for e in inputs.train.examples}


def test_held_out_rows_must_be_set_aside_first(tmp_path, tiny_models, root):
    with pytest.raises(ConfigError, match="its rows held out of training are to be evaluated, and none are; set"):
        plan(tmp_path, tiny_models, root, {"xnli": {"evaluation": {"split": "held_out"}}})
