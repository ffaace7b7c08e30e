"""Recipes: each loads and builds, the paper's have the paper's numbers, and the one on own data runs to its end."""

import re
from pathlib import Path

import pytest
import yaml

from layerbridge.config import load_recipe
from layerbridge.data.tasks import build_task

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = ("xnli", "indicxnli", "sinhala_news", "amazon_reviews")

PUBLISHED = {
    "encoder.name": "google/mt5-large",
    "encoder.dtype": "bfloat16",
    "encoder.layers": "all",
    "encoder.train_biases": False,
    "encoder.lora": None,
    "llm.name": "meta-llama/Llama-3.2-1B-Instruct",
    "llm.dtype": "bfloat16",
    "llm.lora": None,
    "llm.quantization": None,
    "fusion.name": "transformer_softmax",
    "fusion.feedforward_width": 2048,
    "fusion.dropout": 0.1,
    "fusion.normalize_layers": False,
    "projector.name": "linear",
    "projector.match_rms": False,
    "prompt.is_empty": True,
    "task.train_languages": ("en",),
    "task.max_train_rows": 98_999,
    "task.balance_classes": True,
    "task.dev_rows": 1_000,
    "training.epochs": 3.0,
    "training.max_steps": None,
    "training.batch_size": 8,
    "training.learning_rate": 3e-5,
    "training.schedule": "cosine",
    "training.warmup_fraction": 0.05,
    "training.adam_betas": (0.8, 0.999),
    "training.adam_epsilon": 1e-8,
    "training.weight_decay": 3e-7,
    "training.max_grad_norm": 1.0,
    "training.max_source_tokens": 200,
    "training.max_answer_tokens": 200,
    "evaluation.split": "test",
    "evaluation.max_source_tokens": 512,
    "evaluation.limit": None,
}
"""Of arXiv 2508.09091 and its code, as docs/method.md lists them under "Loss and training"."""

PUBLISHED_TASKS = {
    "xnli": (
        "Premise: {premise} Hypothesis: {hypothesis} Label: ",
        ("Entailment", "Neutral", "Contradiction"),
        "en ar bg de el es fr hi ru sw th tr ur vi zh",
    ),
    "indicxnli": (
        "Premise: {premise} Hypothesis: {hypothesis} Label: ",
        ("Entailment", "Neutral", "Contradiction"),
        "as bn gu hi kn ml mr or pa ta te",
    ),
    "sinhala_news": (
        "News Sentence: {sentence} Category: ",
        ("Business", "Entertainment", "Political", "Sports", "Science"),
        "en si",
    ),
    "amazon_reviews": (
        "Review: {text} Label: ",
        ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive"),
        "en de es fr ja zh",
    ),
}
"""Task -> encoder prompt, answers and test languages of the paper."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_task_builds(path):
    recipe = load_recipe(path)
    task = build_task(recipe.task)
    assert recipe.name == path.stem
    assert set(recipe.evaluation.languages or ()) <= set(task.languages_of(recipe.evaluation.split))
    assert set(recipe.task.train_languages) <= set(task.languages_of("train"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_on_english_alone(path):
    assert load_recipe(path).task.train_languages == ("en",)


def test_the_readme_has_one_row_for_every_recipe():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[([\w-]+\.yaml)\]", text, flags=re.M)) == [path.name for path in RECIPES]


@pytest.mark.parametrize("key", PUBLISHED)
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_have_the_published_value(name, key):
    found = load_recipe(FOLDER / f"{name}.yaml")
    for part in key.split("."):
        found = getattr(found, part)
    assert found == PUBLISHED[key]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_have_the_published_task(name):
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    task = build_task(recipe.task)
    prompt, answers, languages = PUBLISHED_TASKS[name]
    assert (task.name, task.encoder_prompt, task.answers) == (name, prompt, answers)
    assert task.languages_of("test") == tuple(languages.split())
    assert recipe.evaluation.languages is None
    assert "generate" in recipe.evaluation.methods


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
