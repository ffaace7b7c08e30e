"""Studies: the cells of a grid are recipes, put together as the study says."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import Recipe, load_recipe
from layerbridge.errors import ConfigError
from layerbridge.studies.study import Study, jobs_of, load_study, merge
from tests.studies.grid import write_study

RECIPES = Path(__file__).parents[2] / "recipes"

KEYS = st.recursive(
    st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), KEYS, max_size=4)


@given(MAPPINGS, MAPPINGS)
def test_in_a_merge_the_second_wins_and_nothing_else_is_lost(first, second):
    merged = merge(first, second)
    assert set(merged) == set(first) | set(second)
    for key in merged:
        if key not in second:
            assert merged[key] == first[key]
        elif isinstance(first.get(key), dict) and isinstance(second[key], dict):
            assert merged[key] == merge(first[key], second[key])
        else:
            assert merged[key] == second[key]
    assert merge(merged, second) == merged


def test_a_part_of_another_name_replaces_the_whole_part():
    first = {"fusion": {"name": "transformer_softmax", "dropout": 0.0}}
    assert merge(first, {"fusion": {"name": "last_layer"}}) == {"fusion": {"name": "last_layer"}}
    assert merge(first, {"fusion": {"dropout": 0.5}})["fusion"] == {"name": "transformer_softmax", "dropout": 0.5}
    unnamed = {"task": {"dev_rows": 3}}
    assert merge(unnamed, {"task": {"name": "xnli"}}) == {"task": {"name": "xnli", "dev_rows": 3}}


@pytest.mark.parametrize("pair", ["mt5-large", "mt5-xl", "embedded"])
def test_every_cell_of_the_paper_study_is_a_recipe(pair):
    study = load_study("paper")
    chosen = study.pairs[pair]
    names = study.task_names(chosen)
    jobs = jobs_of(study, chosen, {name: {} for name in names}, layers=[1, 2])
    assert len({job.place for job in jobs}) == len(jobs)
    bridges = [job for job in jobs if job.kind == "bridge" and not job.name.startswith("layer-")]
    assert len(bridges) == len(names) * len(study.set_ups) * 5
    assert {job.recipe.training.seed for job in bridges} == set(range(5))
    assert all(isinstance(job.recipe, Recipe) for job in jobs)
    assert study.reference in study.set_ups


@pytest.mark.parametrize("task", ["xnli", "indicxnli", "sinhala_news", "amazon_reviews"])
@pytest.mark.parametrize("set_up", ["last_layer", "global_softmax_published", "transformer_softmax", "langbridge"])
def test_the_paper_study_has_the_cells_of_the_recipes(task, set_up):
    """But for the encoder's size, which the pair decides, and the rows, which all seeds share."""
    study = load_study("paper")
    ours = study.recipe(study.pairs["mt5-large"], task, set_up, 0, name="x")
    file = f"langbridge/{task}.yaml" if set_up == "langbridge" else f"paper/{task}-{set_up}.yaml"
    theirs = load_recipe(RECIPES / file)
    assert ours.task.rows_seed == 0
    assert ours.task.model_copy(update={"rows_seed": None}) == theirs.task
    different = [name for name in Recipe.model_fields if getattr(ours, name) != getattr(theirs, name)]
    assert set(different) <= {"name", "task", *(["encoder"] if set_up == "langbridge" else [])}


def test_the_study_in_the_documentation_is_one(tmp_path):
    text = (RECIPES.parent / "docs/studies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    study = load_study(str(tmp_path / "mine.yaml"))
    _, pair = study.pair(None)
    jobs = jobs_of(study, pair, {name: {} for name in study.task_names(pair)})
    assert len(jobs) == 2 * 5 + 1 + 5  # with other rows for each seed there is a probe for each
    assert {job.recipe.task.name for job in jobs} == {"tickets"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "first_layer"}, "reference 'first_layer' is none of set_ups: last_layer, transformer_softmax"),
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"pairs": {}}, "pairs"),
        ({"set_ups": {"last_layer": {}, "../x": {}}}, "'../x' is a name of a folder too"),
        ({"sedes": [1]}, "unknown key 'sedes'. Did you mean 'seeds'?"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, tiny_models, changes, words):
    with pytest.raises(ConfigError) as error:
        load_study(str(write_study(tmp_path, tiny_models, **changes)))
    assert words in str(error.value)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        load_study("papers")
    with pytest.raises(ConfigError, match="Did you mean 'embedded'"):
        load_study("paper").pair("embeded")
    study = load_study("paper")
    pair = study.pairs["embedded"].model_copy(update={"only_tasks": ("xnil",)})
    with pytest.raises(ConfigError, match="Did you mean 'xnli'"):
        study.task_names(pair)


def test_a_cell_that_is_no_recipe_says_which(tmp_path, tiny_models):
    study = load_study(str(write_study(tmp_path, tiny_models, defaults={"training": {"epoch": 3}})))
    assert isinstance(study, Study)
    with pytest.raises(ConfigError, match=r"task headlines, set-up last_layer.*epoch"):
        study.recipe(study.pairs["tiny"], "headlines", "last_layer", 0, name="x")


def test_another_pairs_change_is_no_other_study(tmp_path, tiny_models):
    study = load_study(str(write_study(tmp_path, tiny_models)))
    other = study.pairs["tiny"].model_copy(update={"title": "new", "defaults": {"encoder": "x"}})
    wider = study.model_copy(update={"pairs": {**study.pairs, "other": other}, "title": "new", "seeds": (9,)})
    assert wider.definition("tiny") == study.definition("tiny") != wider.definition("other")
