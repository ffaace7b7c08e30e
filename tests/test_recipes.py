"""Recipes: each loads and builds, the paper's have the paper's numbers, and the one on own data runs to its end."""

import re
from pathlib import Path

import pytest
import yaml

from layerbridge.config import load_recipe
from layerbridge.data.tasks import build_task

FOLDER = Path(__file__).parents[1] / "recipes"
STUDIES = sorted((FOLDER / "lab").glob("*.yaml"))
RECIPES = sorted(set(FOLDER.rglob("*.yaml")) - set(STUDIES))
TASKS = ("xnli", "indicxnli", "sinhala_news", "amazon_reviews")
FUSIONS = ("last_layer", "global_softmax_published", "transformer_softmax")
PAPER = {(task, fusion): FOLDER / "paper" / f"{task}-{fusion}.yaml" for task in TASKS for fusion in FUSIONS}

SHARED = {
    "encoder.layers": "all",
    "encoder.train_biases": False,
    "encoder.lora": None,
    "llm.name": "meta-llama/Llama-3.2-1B-Instruct",
    "llm.lora": None,
    "llm.quantization": None,
    "encoder.dtype": "bfloat16",
    "llm.dtype": "bfloat16",
    "projector.name": "linear",
    "projector.match_rms": False,
    "prompt.is_empty": True,
    "task.data": None,
    "task.train_data": None,
    "task.train_languages": ("en",),
    "task.balance_classes": True,
    "task.dev_rows": 1_000,
    "training.max_steps": None,
    "training.adam_epsilon": 1e-8,
    "training.max_grad_norm": 1.0,
    "evaluation.split": "test",
    "evaluation.languages": None,
    "evaluation.methods": ("score", "generate"),
    "evaluation.max_source_tokens": 512,
    "evaluation.limit": None,
}
"""Alike in the paper's set-up and in LangBridge's, as it is run here."""

PUBLISHED = SHARED | {
    "encoder.name": "google/mt5-large",
    "boundary": "zeros",
    "training.epochs": 3.0,
    "training.batch_size": 8,
    "training.learning_rate": 3e-5,
    "training.schedule": "cosine",
    "training.warmup_fraction": 0.05,
    "training.adam_betas": (0.8, 0.999),
    "training.weight_decay": 3e-7,
    "training.max_source_tokens": 200,
    "training.max_answer_tokens": 200,
    "training.select": "best",
}
"""Of arXiv 2508.09091 and its code, as docs/method.md lists them under "Loss and training"."""

PUBLISHED_FUSIONS = {
    "last_layer": {"name": "last_layer"},
    "global_softmax_published": {"name": "global_softmax_published", "normalize_layers": False},
    "transformer_softmax": {
        "name": "transformer_softmax",
        "feedforward_width": 2048,
        "dropout": 0.1,
        "temperature": 1.0,
        "weights": "softmax",
        "normalize_layers": False,
    },
}

LANGBRIDGE = SHARED | {
    "encoder.name": "DKYoon/mt5-xl-lm-adapt",
    "fusion.name": "last_layer",
    "boundary": "random",
    "task.max_train_rows": 200_000,
    "training.epochs": 1.0,
    "training.batch_size": 128,
    "training.learning_rate": 6e-4,
    "training.schedule": "constant",
    "training.warmup_fraction": 0.0,
    "training.adam_betas": (0.9, 0.999),
    "training.weight_decay": 0.0,
    "training.max_source_tokens": 1024,
    "training.max_answer_tokens": 128,
    "training.select": "last",
}
"""Of arXiv 2401.10695 and its code on labelled data, as docs/method.md has them."""

PUBLISHED_TASKS = {
    "xnli": (
        "Premise: {premise} Hypothesis: {hypothesis} Label: ",
        ("Entailment", "Neutral", "Contradiction"),
        "en ar bg de el es fr hi ru sw th tr ur vi zh",
        98_999,
    ),
    "indicxnli": (
        "Premise: {premise} Hypothesis: {hypothesis} Label: ",
        ("Entailment", "Neutral", "Contradiction"),
        "as bn gu hi kn ml mr or pa ta te",
        98_999,
    ),
    "sinhala_news": (
        "News Sentence: {sentence} Category: ",
        ("Business", "Entertainment", "Political", "Sports", "Science"),
        "en si",
        99_000,
    ),
    "amazon_reviews": (
        "Review: {text} Label: ",
        ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive"),
        "en de es fr ja zh",
        99_000,
    ),
}
"""Task -> the paper's encoder prompt, answers, test languages, and rows to train on at most."""


def value(recipe, key):
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


def keys(data, prefix=""):
    """Return the dotted keys that a recipe file itself writes down."""
    found = set()
    for key, item in data.items():
        found |= keys(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}"}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_loads_and_its_task_builds(path):
    recipe = load_recipe(path)
    task = build_task(recipe.task)
    assert recipe.name == (f"{path.stem}-langbridge" if path.parent.name == "langbridge" else path.stem)
    assert set(recipe.evaluation.languages or ()) <= set(task.languages_of(recipe.evaluation.split))
    assert set(recipe.task.train_languages) <= set(task.languages_of("train"))


def test_every_recipe_has_a_name_of_its_own():
    names = [load_recipe(path).name for path in RECIPES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_trains_on_english_alone(path):
    assert load_recipe(path).task.train_languages == ("en",)


def test_the_readme_has_one_row_for_every_recipe():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    linked = [re.findall(r"\]\(([\w/-]+\.yaml)\)", row.split(" | ")[0]) for row in rows]
    files = [path.relative_to(FOLDER).as_posix() for path in sorted([*RECIPES, *STUDIES])]
    assert sorted(name for names in linked for name in names) == sorted(files)


# ---------------------------------------------------------------------------------------------------------------------
# The paper's, and LangBridge's own


def test_there_is_a_recipe_for_every_task_and_fusion_of_the_paper():
    assert sorted(PAPER.values()) == sorted((FOLDER / "paper").glob("*"))
    assert sorted(path.stem for path in (FOLDER / "langbridge").glob("*")) == sorted(TASKS)


@pytest.mark.parametrize(("task", "fusion"), PAPER)
def test_the_papers_recipes_have_every_published_value(task, fusion):
    recipe = load_recipe(PAPER[task, fusion])
    assert {key: value(recipe, key) for key in PUBLISHED} == PUBLISHED
    assert recipe.fusion.model_dump() == PUBLISHED_FUSIONS[fusion]


@pytest.mark.parametrize(("task", "fusion"), PAPER)
def test_the_papers_recipes_say_the_published_values_themselves_and_not_by_default(task, fusion):
    written = keys(yaml.safe_load(PAPER[task, fusion].read_text(encoding="utf-8")))
    unset = {"prompt.is_empty", "evaluation.languages", "task.data", "task.train_data", "encoder.train_biases"}
    assert {key for key, item in PUBLISHED.items() if item is not None} - unset <= written


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_recipes_of_a_task_differ_in_fusion_and_name_alone(task):
    rest = [load_recipe(PAPER[task, fusion]).model_dump(mode="json", exclude={"fusion", "name"}) for fusion in FUSIONS]
    assert rest[0] == rest[1] == rest[2]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_papers_recipes_of_a_fusion_differ_in_task_and_name_alone(fusion):
    rest = [load_recipe(PAPER[task, fusion]).model_dump(mode="json", exclude={"task", "name"}) for task in TASKS]
    assert all(other == rest[0] for other in rest)


@pytest.mark.parametrize("name", TASKS)
def test_langbridges_recipes_have_its_own_values(name):
    recipe = load_recipe(FOLDER / "langbridge" / f"{name}.yaml")
    assert {key: value(recipe, key) for key in LANGBRIDGE} == LANGBRIDGE


@pytest.mark.parametrize("fusion", [*FUSIONS, "langbridge"])
@pytest.mark.parametrize("name", TASKS)
def test_the_papers_recipes_have_the_published_task(name, fusion):
    recipe = load_recipe(PAPER.get((name, fusion), FOLDER / "langbridge" / f"{name}.yaml"))
    task = build_task(recipe.task)
    prompt, answers, languages, rows = PUBLISHED_TASKS[name]
    assert (task.name, task.encoder_prompt, task.answers) == (name, prompt, answers)
    assert task.languages_of("test") == tuple(languages.split())
    assert recipe.task.max_train_rows == (200_000 if fusion == "langbridge" else rows)


def test_the_rows_trained_on_and_set_aside_are_the_most_of_100_000_that_the_classes_share():
    for _, answers, _, rows in PUBLISHED_TASKS.values():
        assert rows + 1_000 == 100_000 - 100_000 % len(answers)


@pytest.mark.parametrize("path", PAPER.values(), ids=lambda path: path.stem)
def test_the_papers_recipes_name_what_the_sources_leave_open(path):
    comment = " ".join(line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line[0] == "#")
    assert "Left open by the sources" in comment
    for override in ("encoder=google/mt5-xl", "training.select=last"):
        assert f"`-s {override}`" in comment
        assert load_recipe(path, [override]) != load_recipe(path)
    assert load_recipe(path, ["encoder=google/mt5-xl"]).encoder.dtype == "bfloat16"


def test_the_stand_in_for_sinhala_news_takes_the_overrides_that_its_recipe_names(tmp_path):
    path = PAPER["sinhala_news", "last_layer"]
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "Out of reach?" in line]
    overrides = [part.replace("DIR", str(tmp_path)) for part in re.findall(r"-s (\S+?)[ `]", line)]
    recipe = load_recipe(path, overrides)
    assert (recipe.task.name, recipe.task.data) == ("sinhala_news_rksk", str(tmp_path))
    assert "dev" in build_task(recipe.task).splits
    assert recipe.task.dev_rows == 0


def test_the_data_of_a_hub_recipe_can_be_overridden(tmp_path):
    recipe = load_recipe(FOLDER / "sib200.yaml", [f"task.data={tmp_path}"])
    assert (recipe.task.name, recipe.task.data) == ("sib200", str(tmp_path))


def test_the_sib200_recipe_evaluates_the_languages_of_the_embedded_encoder():
    from pretraining.languages import LANGUAGES

    assert set(load_recipe(FOLDER / "sib200.yaml").evaluation.languages) == set(LANGUAGES)


# ---------------------------------------------------------------------------------------------------------------------
# Own data


@pytest.fixture
def own_task():
    return build_task(load_recipe(FOLDER / "own_data.yaml").task)


def test_own_data_takes_ten_lines_of_yaml():
    text = (FOLDER / "own_data.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 10
    assert set(yaml.safe_load(text)["task"]["answers"]) == {"Billing", "Technical", "Delivery"}


def test_own_data_is_balanced_and_no_test_message_is_trained_on(own_task):
    train = own_task.load("en", "train")
    answers = [example.answer for example in train.examples]
    assert len(answers) >= 40
    assert {answers.count(answer) for answer in own_task.answers} == {len(answers) // 3}
    assert len({example.text for example in train.examples}) == len(answers)
    gold = {}
    for language in ("es", "si", "sw"):
        test = own_task.load(language, "test")
        assert len(test) == 10
        assert not {example.text for example in test.examples} & {example.text for example in train.examples}
        gold[language] = [(example.id, example.answer) for example in test.examples]
    assert gold["es"] == gold["si"] == gold["sw"], "the test files are parallel by id"


def test_own_data_trains_and_evaluates_from_end_to_end(tiny_models, tmp_path):
    from layerbridge.evaluation.predict import evaluate_run
    from layerbridge.model.checkpoint import load_bridge
    from layerbridge.training.train import train

    overrides = [
        f"encoder.name={tiny_models['mt5']}",
        f"llm.name={tiny_models['llama']}",
        "training.max_steps=2",
        "evaluation.max_new_tokens=4",
    ]
    recipe = load_recipe(FOLDER / "own_data.yaml", overrides)
    train(recipe, tmp_path / "run", progress=False)
    results = evaluate_run(tmp_path / "run", device="cpu")
    assert {code: score.n for code, score in results.languages.items()} == {"es": 10, "si": 10, "sw": 10}
    assert results.provenance.methods == ("score", "generate")
    assert results.provenance.languages_seen == ("en",)
    assert results.averages("score").zero_shot is not None
    assert load_bridge(tmp_path / "run").render("Hello") == "Message: Hello Team: "
