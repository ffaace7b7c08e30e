"""`layerbridge report` and `layerbridge inspect --html`: thin, and whole."""

import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

from layerbridge.analysis import read_analysis, write_analysis
from layerbridge.cli import app
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import save_bridge
from tests.reporting.html import read_page
from tests.reporting.test_report import small_analysis


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def analysis_file(tmp_path):
    write_analysis(small_analysis(), tmp_path / "analysis.json")
    return tmp_path / "analysis.json"


@pytest.fixture
def asked(monkeypatch):
    """What `analyse` was called with; no run is needed."""
    calls = {}

    def analyse(paths, **options):
        calls.update(options, paths=[path.as_posix() for path in paths])
        return small_analysis(command=options["command"])

    stand_in = ModuleType("layerbridge.evaluation.analyse")
    stand_in.analyse = analyse
    monkeypatch.setitem(sys.modules, "layerbridge.evaluation.analyse", stand_in)
    return calls


def test_an_analysis_is_drawn_again_without_its_runs(analysis_file, tmp_path):
    out = run("report", analysis_file, "--out", tmp_path / "again", "--title", "Another headline")
    assert out.strip() == str(tmp_path / "again/index.html")
    assert "<h1>Another headline</h1>" in (tmp_path / "again/index.html").read_text(encoding="utf-8")
    assert read_analysis(tmp_path / "again/analysis.json").tasks == small_analysis().tasks


def test_runs_are_analysed_with_what_was_asked_for(asked, tmp_path):
    run("report", "runs/a", "runs/b c", "--reference", "a", "--main", "xnli", "--title", "T", "--out", tmp_path / "r")
    assert asked == {
        "paths": ["runs/a", "runs/b c"], "title": "T", "reference": "a", "main": "xnli",
        "command": "layerbridge report runs/a 'runs/b c' --reference a --main xnli --title T",
    }  # fmt: skip
    page = (tmp_path / "r/index.html").read_text(encoding="utf-8")
    assert read_page(page).by_id("origins").find("pre")[0].text == asked["command"]


def test_the_command_shown_has_no_path_of_this_machine(asked, tmp_path):
    run("report", tmp_path / "mine" / "runs", "../elsewhere/last", "runs/a", "--out", tmp_path / "r")
    assert asked["command"] == "layerbridge report runs last runs/a"


def test_results_files_are_runs_and_no_analysis(asked, tmp_path):
    run("report", "runs/a/results.json", "--out", tmp_path / "r")
    assert asked["paths"] == ["runs/a/results.json"]


def test_an_analysis_cannot_be_mixed_with_runs_or_compared_anew(analysis_file):
    with pytest.raises(ConfigError, match="is an analysis already and 2 paths were given. Give it alone"):
        run("report", analysis_file, "runs/a")
    with pytest.raises(ConfigError, match="--reference and --main need the runs"):
        run("report", analysis_file, "--reference", "last_layer")
    with pytest.raises(DataError, match="No file at nowhere.json"):
        run("report", "nowhere.json")


@pytest.fixture
def checkpoint(tiny_models, tmp_path):
    from layerbridge.config import BridgeConfig

    config = BridgeConfig.model_validate(
        {
            "encoder": {"name": tiny_models["mt5"]},
            "llm": {"name": tiny_models["llama"]},
            "fusion": {"name": "transformer_softmax"},
        }
    )
    return save_bridge(Bridge.build(config), tmp_path / "checkpoint")


def test_inspect_writes_one_coloured_page(checkpoint, tmp_path):
    out = tmp_path / "text.html"
    assert run("inspect", checkpoint, "the <b>cat", "--html", out, "--language", "Urdu").strip() == str(out)
    page = read_page(out.read_text(encoding="utf-8"))
    (paragraph,) = [e for e in page.elements if e.attributes.get("class") == "coloured"]
    special = "".join(span.text for span in paragraph.find("span") if span.attributes["class"] == "special")
    assert paragraph.text.removesuffix(special) == "the <b>cat"
    assert (paragraph.attributes["lang"], paragraph.attributes["dir"]) == ("ur", "rtl")
    assert "b" not in {e.tag for e in page.elements}
    table = next(e for e in page.elements if e.tag == "table")
    sums = [sum(float(cell.text) for cell in row.find("td")) for row in table.find("tbody")[0].find("tr")]
    assert sums == pytest.approx([100] * len(sums), abs=0.5)
    assert not [e for e in page.elements if e.attributes.get("href", "data:")[:5] != "data:"]


def test_inspect_without_a_language_lets_the_letters_decide(checkpoint, tmp_path):
    run("inspect", checkpoint, "the cat", "--html", tmp_path / "text.html")
    page = read_page((tmp_path / "text.html").read_text(encoding="utf-8"))
    (paragraph,) = [e for e in page.elements if e.attributes.get("class") == "coloured"]
    assert paragraph.attributes["dir"] == "auto"
    assert "lang" not in paragraph.attributes


def test_a_language_needs_a_page_and_must_be_known(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="--language si says how to draw the text in HTML; give --html FILE"):
        run("inspect", checkpoint, "x", "--language", "si")
    with pytest.raises(ConfigError, match="Unknown language 'sinhal'. Did you mean Sinhala"):
        run("inspect", checkpoint, "x", "--language", "sinhal", "--html", tmp_path / "x.html")
