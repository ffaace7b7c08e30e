"""Documents say what is there: symbols import, tests exist, links lead somewhere, rooms stand."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "layerbridge"
ROOMS = [
    path for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "build", "dist", "shared", "site")
]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(path for room in ROOMS if room.name[0] != "." for path in room.rglob("*.md"))])
OURS = ("", "docs", "docs/guides", "docs/reference", "recipes")
WRITTEN = [path for path in MARKDOWN if path.parent in {ROOT / folder for folder in OURS}]

SYMBOL = re.compile(r"`(layerbridge(?:\.\w+)+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)*)`")
SOURCE_FILE = re.compile(r"`((?:src|tests|docs|recipes|benchmarks|pretraining)/[\w./-]*)`")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
ROOM_FILE = re.compile(r"`((?:model|data|training|evaluation|cli|embedded)/[\w./]*)`")


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def resolve(symbol: str) -> None:
    """Import the longest module that a dotted name begins with, and walk the rest; config fields count."""
    parts = symbol.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not symbol.startswith(error.name):
                raise
            continue
        for name in parts[length:]:
            if isinstance(found, type) and name in fields(found):
                found = None
                continue
            found = getattr(found, name)
        return


def fields(kind: type) -> set[str]:
    return {name for owner in kind.__mro__ for name in getattr(owner, "__annotations__", {})}


@cache
def claims_in(path: Path) -> set[str]:
    """Return `test_x` and `TestY::test_x` of a test file."""
    found: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                found.add(prefix + node.name)
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                walk(node.body, f"{prefix}{node.name}::")

    walk(ast.parse(read(path)).body, "")
    return found


def slugs(text: str) -> set[str]:
    """Return the anchors that a hosting site makes of a document's headings."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_symbols(text: str) -> list[str]:
    missing = []
    for symbol in sorted(set(SYMBOL.findall(text))):
        try:
            resolve(symbol)
        except AttributeError:
            missing.append(symbol)
    return missing


def missing_tests(text: str) -> list[str]:
    return [
        f"{file}::{test}"
        for file, test in TEST.findall(text)
        if not (ROOT / file).is_file() or test not in claims_in(ROOT / file)
    ]


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for pair in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        target = pair[0] or pair[1]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists() or (anchor and anchor not in slugs(text if goal == path else read(goal))):
            broken.append(target)
    return broken


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WRITTEN, ids=names)
def test_every_symbol_named_in_a_document_is_there(path):
    assert missing_symbols(read(path)) == []


@pytest.mark.parametrize("path", WRITTEN, ids=names)
def test_every_test_named_in_a_document_is_there(path):
    assert missing_tests(read(path)) == []


@pytest.mark.parametrize("path", MARKDOWN, ids=names)
def test_no_relative_link_is_broken(path):
    assert broken_links(path, read(path)) == []


@pytest.mark.parametrize("path", WRITTEN, ids=names)
def test_every_file_named_in_a_document_is_there(path):
    placeholders = ("NAME", "LANG", "FOLDER")
    files = [file for file in SOURCE_FILE.findall(read(path)) if not any(word in file for word in placeholders)]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_row_of_the_equation_table_has_a_symbol_and_a_test():
    text = read(ROOT / "docs/method.md").split("## Equation, symbol, test")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    rows = [row for row in rows if not re.match(r"\| (# \|)? ?what", row)]
    assert len(rows) > 15
    assert [row for row in rows if not (SYMBOL.search(row) and TEST.search(row))] == []


def test_every_fusion_has_its_row_in_the_method():
    from layerbridge.model.fusion import FUSIONS

    table = read(ROOT / "docs/method.md").split("\n## Fusions")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(FUSIONS)


def test_every_builtin_task_has_its_row_in_the_formats():
    from layerbridge.data.tasks import TASKS

    table = read(ROOT / "docs/formats.md").split("### Built-in tasks")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(TASKS)


def test_every_room_and_file_named_in_the_architecture_is_there():
    text = read(ROOT / "docs/architecture.md")
    assert [file for file in ROOM_FILE.findall(text) if not (PACKAGE / file).exists()] == []
    rooms = re.findall(r"^\| `(\w+)` \|", text.split("## Files of the model room")[0], flags=re.M)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(rooms) - {"ground"} == folders
    ground = next(line for line in text.splitlines() if line.startswith("| `ground` |"))
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", ground)) == modules


def test_every_file_of_the_model_room_is_in_the_architecture():
    table = read(ROOT / "docs/architecture.md").split("## Files of the model room")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `model/(\w+\.py)` \|", table, flags=re.M))
    assert listed == {path.name for path in (PACKAGE / "model").glob("*.py")} - {"__init__.py"}


def test_the_run_record_in_the_formats_is_the_one_written():
    """`run.json` keys, as `training/train.py` spells them."""
    source = ast.parse(read(PACKAGE / "training/train.py"))
    functions = {node.name: node for node in source.body if isinstance(node, ast.FunctionDef)}
    written = {
        key.value
        for name in ("train", "describe_rows", "_select")
        for node in ast.walk(functions[name])
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    table = read(ROOT / "docs/formats.md").split("\n`run.json`:")[1].split("\n`environment.json`")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == written


# The checks themselves: what they are for, they find.


def test_a_missing_symbol_and_a_missing_test_are_found():
    assert missing_symbols("`layerbridge.model.fusion.Gone` and `layerbridge.config.TrainingConfig.epochs`") == [
        "layerbridge.model.fusion.Gone"
    ]
    here = (
        "`tests/test_docs.py::test_gone` `tests/gone.py::test_x` `tests/test_docs.py::test_no_relative_link_is_broken`"
    )
    assert missing_tests(here) == ["tests/test_docs.py::test_gone", "tests/gone.py::test_x"]


def test_a_broken_link_and_a_broken_anchor_are_found():
    text = "# Here\n[a](gone.md) [b](LICENSE) [c](#here) [d](#gone) [e](https://x.y/z) [f](docs/formats.md#task-data)"
    assert broken_links(ROOT / "CHANGELOG.md", text) == ["gone.md", "#gone"]
