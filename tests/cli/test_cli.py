"""The command line, end to end on tiny models, and its frozen list of flags."""

import json
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.errors import ConfigError
from tests.training.test_train import recipe as make_recipe
from tests.training.test_train import rows  # noqa: F401

FLAGS = {
    "annotate": {
        "--labels", "--probabilities", "--generate", "--max-new-tokens", "--stop", "--text-column", "--field", "-f",
        "--raw", "--prompt", "--id-column", "--keep", "--prefix", "--too-long", "--max-source-tokens", "--batch-tokens",
        "--workers", "--executor", "--executor-option", "--part", "--device", "--plan",
        "--encoder", "--llm", "--trust-remote-code",
    },
    "demo": {"--out", "--steps", "--languages", "--seed"},
    "train": {"--set", "-s", "--out", "--overwrite", "--cache", "--cache-limit", "--quiet"},
    "evaluate": {
        "--task", "--data", "--languages", "--split", "--limit", "--methods", "--out", "--rescore", "--batch-size",
        "--batch-tokens", "--encoder", "--llm", "--trust-remote-code",
    },
    "compare": {"--method", "--format", "--task"},
    "generate": {
        "--field", "-f", "--raw", "--prompt", "--max-new-tokens", "--temperature", "--scores",
        "--encoder", "--llm", "--trust-remote-code",
    },
    "harness": {
        "--tasks", "--data", "--languages", "--limit", "--batch-size", "--include-path", "--include-defaults", "--out",
        "--batch-tokens", "--encoder", "--llm", "--trust-remote-code",
    },
    "inspect": {"--raw", "--html", "--language", "--encoder", "--llm", "--trust-remote-code"},
    "report": {"--out", "--title", "--reference", "--main"},
    "reproduce": {
        "--pair", "--data", "--out", "--tasks", "--set-ups", "--seeds", "--workers", "--cache", "--cache-limit",
        "--plan",
    },
    "select": {"--out", "--task", "--reference", "--report", "--unfinished"},
    "serve": {
        "--host", "--port", "--engine", "--engine-url", "--engine-model", "--engine-route", "--api-key-file", "--limit",
        "--device",
        "--encoder", "--llm", "--trust-remote-code",
    },
}  # fmt: skip


def flags(command):
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("-")}


def test_the_list_of_flags_is_frozen():
    commands = get_command(app).commands
    assert set(commands) == {*FLAGS, "tasks"}
    for name, expected in FLAGS.items():
        found = {flag for flag in flags(commands[name]) if not flag.startswith("--no-") and flag != "--help"}
        assert found == expected, name


def test_every_command_has_an_example_in_its_help():
    commands = dict(get_command(app).commands)
    commands |= {f"tasks {name}": command for name, command in commands.pop("tasks").commands.items()}
    for name, command in commands.items():
        assert f"`layerbridge {name}" in command.help, name


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from layerbridge.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "inspect" in done.stdout


@pytest.fixture(scope="module")
def recipe_file(tiny_models, rows, tmp_path_factory):  # noqa: F811
    import yaml

    files = {name: str(rows / f"{name}.jsonl") for name in ("train", "dev")} | {"test": {"sw": str(rows / "sw.jsonl")}}
    config = make_recipe(tiny_models, rows, task={"files": files}, max_steps=2)
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def two_runs(recipe_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for fusion in ("last_layer", "transformer_softmax"):
        run("train", recipe_file, "-s", f"fusion={fusion}", "-s", f"name={fusion}", "--out", out / fusion, "--quiet")
        run("evaluate", out / fusion)
    return out


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_train_evaluate_compare(two_runs):
    results = json.loads((two_runs / "last_layer/evaluation/own-test/results.json").read_text())
    assert results["languages"]["sw"]["n"] == 6
    assert set(results["languages"]["sw"]["methods"]) == {"score", "generate"}
    table = run("compare", two_runs / "last_layer", two_runs / "transformer_softmax", "--format", "markdown")
    assert "last_layer" in table
    assert "transformer_softmax" in table
    assert "sw" in table


def test_generate_and_inspect(two_runs):
    out = run("generate", two_runs / "last_layer", "the cat", "--scores", "--max-new-tokens", "3")
    assert "positive" in out
    assert "probability" in out
    assert run("generate", two_runs / "last_layer", "-f", "body=the cat", "--temperature", "1", "--max-new-tokens", "2")
    table = run("inspect", two_runs / "transformer_softmax", "the cat")
    assert "layer 1" in table
    assert "mean" in table


def test_the_demo_command_compares_the_three_hand_overs(tmp_path):
    out = run("demo", "--out", tmp_path / "demo", "--steps", "1", "--languages", "en,si")
    for wanted in ("last_layer", "global_softmax", "transformer_softmax", "zero-shot average", "smoke benchmark"):
        assert wanted in out
    assert str(tmp_path / "demo").replace("\n", "") in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.yaml"), "No recipe at nowhere.yaml"),
        (("evaluate", "nowhere"), "No run or checkpoint at nowhere"),
        (("generate", "nowhere"), "Give either one TEXT or the prompt's fields"),
        (("generate", "nowhere", "-f", "premise"), "not of the form NAME=TEXT"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_code_two(arguments, message):
    done = subprocess.run([sys.executable, "-m", "layerbridge.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_recipe_keys_name_the_nearest(recipe_file, tmp_path):
    for override, message in (
        ("fusion=transformer_sofmax", "Did you mean 'transformer_softmax'"),
        ("training.learning_rat=1", "unknown key 'training.learning_rat'. Did you mean 'learning_rate'"),
        ("training.seed=abc", "training.seed"),
        ("nonsense", "not of the form key.path=value"),
    ):
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            run("train", recipe_file, "-s", override, "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match=r"Unknown task 'sib20'\. Did you mean 'sib200'"):
        run("tasks", "show", "sib20")
