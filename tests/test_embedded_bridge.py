"""The bridge in the package: it loads by its name, is what its recipe says, and reads languages that it never saw."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import layerbridge
from layerbridge.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "src/layerbridge/embedded"


def read_headlines(language: str) -> list[dict[str, str]]:
    with (EMBEDDED / "headlines" / language / "test.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def bridge():
    return layerbridge.load("embedded", device="cpu")


def test_it_is_what_its_recipe_makes(bridge):
    recipe = load_recipe(str(ROOT / "recipes/embedded_bridge.yaml"), [])
    assert bridge.config == recipe.bridge
    assert bridge.trained_on["task"] == recipe.task.name
    assert bridge.trained_on["languages"] == ["en"]


def test_a_folder_of_that_name_does_not_stand_in_for_it(tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    assert layerbridge.load("embedded", device="cpu").trained_on["task"] == "headlines"


@pytest.mark.parametrize("language", ["si", "ta", "sw"])
def test_it_tells_topics_in_languages_it_was_not_trained_on(bridge, language):
    rows = read_headlines(language)
    found = bridge.classify([bridge.render(row["text"]) for row in rows])
    right = sum(one.label == row["category"] for one, row in zip(found, rows, strict=True))
    assert right / len(rows) > 0.5  # a fifth by chance; measured: 62 to 77 %


def test_serving_needs_no_run_of_ones_own():
    process = subprocess.Popen(
        [sys.executable, "-m", "layerbridge.cli", "serve", "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        found = re.fullmatch(r"Serving embedded at (\S+)\n", process.stdout.readline())
        (row, *_) = read_headlines("si")
        answer = httpx.post(f"{found[1]}/v1/classify", json={"model": "embedded", "texts": row["text"]}, timeout=60)
        assert answer.json()["data"][0]["label"] in {row["category"] for row in read_headlines("en")}
    finally:
        process.kill()
        process.wait()
