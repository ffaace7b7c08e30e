"""Rooms import one way, and what must be quick to import loads nothing heavy."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "layerbridge"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

MAY_IMPORT: dict[str, set[str]] = {
    "ground": set(),
    "model": {"ground"},
    "data": {"ground"},
    "training": {"ground", "model", "data"},
    "evaluation": {"ground", "model", "data"},
    "reporting": {"ground"},
    "studies": {"ground", "model", "data", "training", "evaluation"},
    "serving": {"ground", "model"},
    "annotation": {"ground", "model"},
    "cli": {"ground", "model", "data", "training", "evaluation", "reporting", "studies", "serving", "annotation"},
    "embedded": set(),
}
"""Room -> rooms that it may import, beside itself. The ground floor is the files directly in the package."""

FRONT_DOOR = {"load": "model", "pipeline": "model", "Bridge": "model", "import_published": "model"}
"""Names that the package's own `__init__.py` fetches from a room when they are asked for."""

OUTSIDE = ("pretraining", "benchmarks", "tests", "recipes", "docs", "docsite")
HEAVY = ("torch", "transformers", "pyarrow", "numpy", "huggingface_hub", "fastapi", "uvicorn", "datatrove")


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything imported, at any depth, also by `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def room(name: str) -> str | None:
    """Return the room of a dotted name; None for what is not ours."""
    parts = name.split(".")
    if parts[0] != "layerbridge":
        return None
    first = parts[1] if len(parts) > 1 else ""
    return FRONT_DOOR.get(first, first if first in MAY_IMPORT else "ground")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def violations(text: str, path: Path) -> list[str]:
    """Return what a file imports against the rules, with its line."""
    module = module_name(path)
    own = room(module)
    assert own is not None
    allowed = {own, *MAY_IMPORT[own]} if own != "embedded" else set()
    found = []
    for line, name in imports(ast.parse(text), module, is_package=path.name == "__init__.py"):
        target = room(name)
        if own == "embedded" or name.split(".")[0] in OUTSIDE or (target is not None and target not in allowed):
            found.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {name}")
    return found


def test_every_folder_of_the_package_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT) - {"ground"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    assert violations(path.read_text(encoding="utf-8"), path) == []


def test_the_front_door_opens_the_model_room_only_when_asked():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    rooms = {room(name) for _, name in imports(tree, "layerbridge", is_package=True)} - {None}
    assert rooms == {"model"}
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and room(node.module or "") is not None]
    (opener,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    offered = {
        node.comparators[0].value
        for node in ast.walk(opener)
        if isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant)
    }
    assert offered == set(FRONT_DOOR)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("config.py", "from layerbridge.model.bridge import Bridge"),
        ("errors.py", "from layerbridge import load"),
        ("model/x.py", "def f():\n    from layerbridge.data.example import Example"),
        ("model/x.py", "from ..data import example"),
        ("data/x.py", "import layerbridge.model.fusion"),
        ("data/tasks/x.py", "from layerbridge import Bridge"),
        ("training/x.py", "from layerbridge.evaluation.score import rescore"),
        ("evaluation/x.py", "import importlib\nimportlib.import_module('layerbridge.training.train')"),
        ("evaluation/x.py", "from layerbridge.cli import main"),
        ("embedded/__init__.py", "import json"),
        ("cli/x.py", "from benchmarks.fusion import main"),
        ("model/x.py", "import tests.tiny"),
        ("training/x.py", "from pretraining import build"),
        ("serving/x.py", "from layerbridge.evaluation.run_folder import find_run"),
        ("model/x.py", "from layerbridge.serving.engine import Engine"),
        ("annotation/x.py", "from layerbridge.data.files import read_table"),
    ],
)
def test_an_import_against_the_rules_is_found(file, line):
    assert len(violations(line, PACKAGE / file)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("results.py", "from layerbridge.atomic import replace_text"),
        ("model/x.py", "from layerbridge import __version__, config as cfg"),
        ("model/x.py", "from . import fusion\nfrom .splice import splice"),
        ("data/tasks/x.py", "from ..example import Example\nfrom ...errors import DataError"),
        ("cli/x.py", "from layerbridge.training.train import train\nimport torch"),
    ],
)
def test_an_import_by_the_rules_is_let_through(file, line):
    assert violations(line, PACKAGE / file) == []


def test_the_architecture_document_has_the_same_rules():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Files of the model room")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    written = {cells[0].strip(" `"): set(re.findall(r"`(\w+)`", cells[2])) for cells in rows}
    assert written == MAY_IMPORT


@pytest.mark.parametrize(
    "modules",
    [
        ["layerbridge"],
        ["layerbridge.cli"],
        ["layerbridge.config"],
        sorted(f"layerbridge.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem != "__init__"),
    ],
    ids=["layerbridge", "layerbridge.cli", "layerbridge.config", "the whole ground floor"],
)
def test_importing_loads_nothing_heavy(modules):
    code = f"import {', '.join(modules)}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_of_the_package_is_in_the_wheel():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = data["tool"]["setuptools"]["package-data"]["layerbridge"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert sorted(files - shipped) == []
