import pytest
import typer
from typer.testing import CliRunner

from layerbridge.cli.compare import compare
from layerbridge.cli.evaluate import evaluate
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.predictions import predictions_path, write_predictions
from layerbridge.results import read_results, write_results
from tests.evaluation.fakes import make_header, make_language, make_prediction, make_results


def call(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "demo"
    write_results(make_results(run="demo"), folder / "evaluation" / "news-test" / "results.json")
    return folder


def test_a_run_an_evaluation_folder_and_a_file_are_all_accepted(run):
    folder = run / "evaluation" / "news-test"
    outputs = {call(compare, path) for path in (run, folder, folder / "results.json")}
    assert len(outputs) == 1
    assert "zero-shot average" in outputs.pop()


def test_markdown_and_csv_are_printed_bare(run):
    assert call(compare, run, "--format", "markdown").startswith("**news (version 1), test")
    output = call(compare, run, "--format", "csv", "--method", "generate")
    assert output.startswith("language,seen,n,majority %,demo: accuracy %")
    assert output.count("\n") == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "markdwn"], "Unknown format 'markdwn'. Did you mean 'markdown'"),
        (["--method", "scor"], "Unknown method 'scor'. Did you mean 'score'"),
        (["--task", "news-tets"], "Unknown evaluation 'news-tets'. Did you mean 'news-test'"),
    ],
)
def test_unknown_names_come_with_the_nearest(run, arguments, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        call(compare, run, *arguments)


def test_one_of_several_evaluations_is_chosen_by_name(run):
    languages = {"en": make_language(1)}
    write_results(make_results(languages, limit=10), run / "evaluation" / "news-test-first-10" / "results.json")
    with pytest.raises(
        ConfigError, match=r"several evaluations: news-test, news-test-first-10. Choose one with --task"
    ):
        call(compare, run)
    assert "first 10 rows" in " ".join(call(compare, run, "--task", "news-test-first-10").split())


def test_a_run_without_results_says_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match="`layerbridge evaluate"):
        call(compare, tmp_path)
    with pytest.raises(ConfigError, match="No run, evaluation folder"):
        call(compare, tmp_path / "nothing")


def test_both_commands_show_an_example():
    assert "layerbridge compare runs/" in compare.__doc__
    assert "layerbridge evaluate runs/" in evaluate.__doc__


# evaluate, without a model


def test_rescoring_an_evaluation_folder_needs_no_run(tmp_path):
    rows = [make_prediction(0, "Sports", "Sports", "Sports")]
    write_predictions(predictions_path(tmp_path, "si"), make_header(1), rows)
    output = call(evaluate, tmp_path, "--rescore")
    assert "100.00" in output
    assert str(tmp_path / "results.json") in output.replace("\n", "")
    assert read_results(tmp_path / "results.json").languages["si"].n == 1


def test_options_reach_the_evaluation(tmp_path, monkeypatch):
    seen = {}

    def fake(run, **options):
        seen.update(options)
        return make_results()

    monkeypatch.setattr("layerbridge.evaluation.predict.evaluate_run", fake)
    (tmp_path / "bridge.safetensors").write_text("")
    options = [
        "--languages",
        "si, ta",
        "--methods",
        "score",
        "--limit",
        5,
        "--split",
        "dev",
        "--batch-size",
        2,
    ]
    call(evaluate, tmp_path, "--task", "xnli", "--data", "there", *options)
    assert (seen["task_config"].name, seen["task_config"].data) == ("xnli", "there")
    assert seen["config"].model_dump(exclude_defaults=True) == {
        "languages": ("si", "ta"),
        "methods": ("score",),
        "limit": 5,
        "split": "dev",
        "batch_size": 2,
    }
    assert seen["out"] == tmp_path / "evaluation" / "xnli-dev-first-5"
    with pytest.raises(ConfigError, match="command line: limit"):
        call(evaluate, tmp_path, "--task", "xnli", "--limit", 0)
