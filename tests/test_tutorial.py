"""The tutorial, followed from its first command to its last, with tiny models in place of the embedded pair."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import layerbridge
from layerbridge.cli import app
from tests.serving.running import running

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL, flags=re.M | re.S)
COMMANDS = [
    shlex.split(line)[1:]
    for kind, block in BLOCKS
    for line in block.splitlines()
    if not kind and line.startswith("layerbridge ")
]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
EXAMPLES = [
    shlex.split(match[0].partition("  #")[0])[1:]
    for guide in GUIDES
    for match in re.finditer(r"^layerbridge .*$|(?<=`)layerbridge [^`]*", guide.read_text(encoding="utf-8"), flags=re.M)
]


def blocks(kind: str) -> list[str]:
    return [block for found, block in BLOCKS if found == kind]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.filterwarnings("ignore:Texts longer than:UserWarning")  # tiny tokenizers make many tokens of a text
def test_every_step_works_as_it_is_written(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (recipe,) = blocks("yaml")
    Path("headlines.yaml").write_text(recipe, encoding="utf-8")
    tiny = [f"encoder={tiny_models['mt5']}", f"llm={tiny_models['llama']}", "training.max_steps=2"]
    tiny += ["training.eval_every=2", "training.max_source_tokens=16"]
    ran = []
    for command in COMMANDS:
        if command[0] in ("serve", "demo"):
            continue
        more = {"train": [part for option in tiny for part in ("-s", option)], "evaluate": ["--limit", "2"]}
        output = run(*command, *more.get(command[0], []))
        assert output.strip(), command
        ran.append(command[0])
    assert ran == ["tasks", "train", "train", "evaluate", "evaluate", "compare", "generate", "inspect"]

    from_python, from_client = blocks("python")
    exec(compile(from_python, "tutorial.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert {line.split()[0] for line in printed[:2]} <= {"Business", "Entertainment", "Political", "Sports", "Science"}

    bridge = layerbridge.load("runs/headlines")
    with running({"headlines": bridge}) as served:
        address = "http://127.0.0.1:8000"
        assert address in from_client
        exec(compile(from_client.replace(address, served.url), "tutorial.md", "exec"), {})
        wanted = bridge.generate([bridge.render(re.search(r'headline = "(.*)"', from_client)[1])], max_new_tokens=8)
        assert capsys.readouterr().out == wanted[0] + "\n"
        ((path, body),) = re.findall(r"curl -s http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'", TUTORIAL, flags=re.S)
        assert served.post(path, json.loads(body)).json()["data"][0]["label"] in bridge.trained_on["answers"]


@pytest.mark.parametrize("command", [*COMMANDS, *EXAMPLES], ids=" ".join)
def test_every_command_of_tutorial_and_guides_is_there_with_its_flags(command):
    found = get_command(app)
    for word in command[:2]:
        found = getattr(found, "commands", {}).get(word, found)
    flags = {flag for param in found.params for flag in param.opts}
    assert found is not get_command(app)
    assert {word for word in command if word.startswith("-")} <= flags


def test_the_yaml_of_the_guides_is_of_recipes_that_can_be(tmp_path):
    """Parts of recipes: each is put into one that is otherwise whole."""
    import yaml

    from layerbridge.config import Recipe

    whole = {"name": "guide", "task": "headlines"}
    found = [
        yaml.safe_load(block)
        for guide in GUIDES
        for block in re.findall(r"^```yaml\n(.*?)^```$", guide.read_text(encoding="utf-8"), flags=re.M | re.S)
    ]
    assert len(found) > 3
    for part in found:
        Recipe.model_validate(whole | part)
