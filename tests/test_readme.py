"""The README, tried as a new user would: every command is real, and the ones that can run here run."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from layerbridge.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
LINES = [line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "" for line in block.splitlines()]
COMMANDS = [shlex.split(line)[1:] for line in LINES if line.startswith("layerbridge ")]


def block(kind: str) -> str:
    (text,) = [text for found, text in BLOCKS if found == kind]
    return text


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_readme_is_finished():
    assert "@" not in re.sub(r"```.*?```", "", README, flags=re.S)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_flag_is_there(command):
    found = get_command(app)
    for word in command[:2]:
        found = getattr(found, "commands", {}).get(word, found)
    flags = {flag for param in found.params for flag in param.opts}
    assert found is not get_command(app)
    assert {word for word in command if word.startswith("-")} <= flags


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_yaml_is_the_recipe():
    recipe = (ROOT / "recipes/own_data.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(block("yaml")) == yaml.safe_load(recipe)
    assert len(block("yaml").strip().splitlines()) <= 10


def test_own_data_and_the_python_example_run(tiny_models, tmp_path, monkeypatch, capsys):
    """The README's commands in its order, with tiny bases in place of the embedded ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    bases = ["-s", f"encoder={tiny_models['mt5']}", "-s", f"llm={tiny_models['llama']}", "-s", "training.max_steps=2"]
    for command in COMMANDS:
        if any("own_data" in word for word in command):
            output = run(*command, *(bases if command[0] == "train" else []))
            assert output.strip(), command
    python = block("python")
    assert len([line for line in python.strip().splitlines() if line]) <= 10
    exec(compile(python, "README.md", "exec"), {})
    assert "[" in capsys.readouterr().out


def test_the_real_models_command_runs_on_local_folders_of_the_same_architectures(tiny_models, tmp_path, monkeypatch):
    (command,) = [command for command in COMMANDS if any("google/mt5" in word for word in command)]
    data = tmp_path / "xnli"
    for language in ("en", "sw"):
        (data / language).mkdir(parents=True)
        for split, count in (("train", 1100), ("validation", 6), ("test", 6)):
            table = pa.table(
                {
                    "premise": [f"the cat {language} {i}" for i in range(count)],
                    "hypothesis": [f"the mat {i}" for i in range(count)],
                    "label": [i % 3 for i in range(count)],
                }
            )
            pq.write_table(table, data / language / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    folders = {"google/mt5-large": tiny_models["mt5"], "meta-llama/Llama-3.2-1B-Instruct": tiny_models["llama"]}
    words = [str(ROOT / word) if word.startswith("recipes/") else word for word in command]
    for name, folder in folders.items():
        words = [word.replace(name, folder) for word in words]
    assert words != command
    options = ["task.data=" + str(data), "training.max_steps=2", "training.eval_every=2", "task.dev_rows=50"]
    run(*words, *(part for option in options for part in ("-s", option)), "--quiet")
    output = run("evaluate", "runs/xnli-transformer_softmax", "--languages", "en,sw", "--batch-size", "6")
    assert "sw" in output
