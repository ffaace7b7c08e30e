"""The laboratory's studies: every cell is a recipe, ideas choose on dev alone, and the table reads other rows."""

import json
from pathlib import Path

import pytest

from layerbridge.config import RECOMMENDED, BridgeConfig, load_recipe
from layerbridge.studies.inputs import HELD_OUT, InputCache, find_tasks
from layerbridge.studies.study import jobs_of, load_study

LAB = Path(__file__).parents[2] / "recipes" / "lab"
STUDIES = {path.stem: load_study(str(path)) for path in sorted(LAB.glob("*.yaml"))}
TASKS = ("sib200", "xnli", "sinhala_news_rksk")


def cells(name):
    study = STUDIES[name]
    _, pair = study.pair(None)
    return jobs_of(study, pair, {task: {} for task in study.task_names(pair)}, layers=[1, 2])


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_is_a_recipe_on_english_alone_over_five_seeds(name):
    jobs = cells(name)
    assert len({job.place for job in jobs}) == len(jobs)
    assert {job.task for job in jobs} == set(TASKS)
    assert {job.recipe.training.seed for job in jobs if job.kind == "bridge"} == set(range(5))
    assert all(job.recipe.task.train_languages == ("en",) for job in jobs)


@pytest.mark.parametrize("name", STUDIES)
def test_no_step_is_chosen_and_seeds_share_their_rows(name):
    for job in cells(name):
        assert (job.recipe.training.select, job.recipe.task.rows_seed) == ("last", 0), job.place


def test_texts_to_distil_on_are_each_tasks_own():
    found = {job.task: job.recipe.training.self_distillation.texts for job in cells("ideas") if "on_texts" in job.name}
    assert found == {task: str((LAB / "texts" / f"{task}.txt").absolute()) for task in TASKS}
    assert all(Path(path).is_file() for path in found.values())


def test_ideas_are_evaluated_on_dev_and_never_on_what_the_table_reports():
    splits = {(job.task, job.recipe.evaluation.split) for job in cells("ideas")}
    assert splits == {("sib200", "dev"), ("xnli", HELD_OUT), ("sinhala_news_rksk", "dev")}
    assert {job.recipe.evaluation.split for job in cells("table")} == {"test"}


def test_what_the_ideas_and_the_table_share_is_trained_alike():
    ideas, table = ({(job.task, job.name): job.recipe for job in cells(name)} for name in ("ideas", "table"))
    shared = {place for place in ideas if place in table and not place[1].startswith("layer-")}
    assert {place[1].split("-seed-")[0] for place in shared} >= {
        "last_layer",
        "global_softmax_published",
        "transformer_softmax",
    }
    for place in shared:
        if place[0] == "xnli":  # of which the table reads fewer rows, for an hour's sake
            continue
        ours, theirs = ideas[place], table[place]
        assert ours.bridge == theirs.bridge
        assert (ours.task, ours.training) == (theirs.task, theirs.training)
        assert ours.evaluation.languages == theirs.evaluation.languages


def test_what_is_recommended_is_what_was_chosen_on_dev():
    log = json.loads((LAB.parents[1] / "docs" / "reports" / "lab-selection" / "selection.json").read_text())
    ideas, table = ({(job.task, job.name): job.recipe for job in cells(name)} for name in ("ideas", "table"))
    for task in TASKS:
        for seed in range(5):
            chosen, shown = ideas[task, f"{log['chosen']}-seed-{seed}"], table[task, f"recommended-seed-{seed}"]
            assert chosen.bridge == shown.bridge
            assert task == "xnli" or chosen.training == shown.training
    recipe = load_recipe(LAB.parent / "sib200.yaml")
    assert recipe.bridge == table["sib200", "recommended-seed-0"].bridge


def test_the_selection_log_shows_dev_alone():
    log = json.loads((LAB.parents[1] / "docs" / "reports" / "lab-selection" / "selection.json").read_text())
    assert log["split"] == "dev"


def test_each_set_up_is_another_one():
    for study in STUDIES.values():
        _, pair = study.pair(None)
        dumps = [
            study.recipe(pair, "sib200", name, 0, name="x").model_dump_json()
            for name in study.set_ups
            if name != "recommended"
        ]
        assert len(set(dumps)) == len(dumps)


def test_the_table_has_the_recommended_fusion():
    study = STUDIES["table"]
    _, pair = study.pair(None)
    assert study.recipe(pair, "sib200", "recommended", 0, name="x").fusion == BridgeConfig(fusion=RECOMMENDED).fusion


def test_the_languages_are_those_of_the_embedded_encoder():
    from pretraining.languages import LANGUAGES

    for name in STUDIES:
        assert {frozenset(j.recipe.evaluation.languages) for j in cells(name) if j.task == "sib200"} == {
            frozenset(LANGUAGES)
        }


def test_on_the_real_data_no_row_is_both_chosen_on_and_reported(measuring_data):
    texts = {}
    for name, study in STUDIES.items():
        _, pair = study.pair(None)
        found, left_out = find_tasks(study, pair, measuring_data)
        assert (set(found), left_out) == (set(TASKS), {})
        cache = InputCache()
        for job in jobs_of(study, pair, found, seeds=[0], set_ups=["last_layer"]):
            read = cache.of(job.recipe)
            rows = {(job.task, e.language, e.text) for split in read.splits.values() for e in split.examples}
            texts.setdefault(name, set()).update(rows)
            trained = {("en", e.text) for e in read.train.examples}
            assert not trained & {row[1:] for row in rows}, job.place
    assert not texts["ideas"] & texts["table"]
    assert {row[1] for row in texts["ideas"] if row[0] != "sib200"} == {"en"}
