import subprocess
import sys

import pytest
from typer.testing import CliRunner

from layerbridge.cli.tasks import tasks
from layerbridge.data.tasks import TASKS
from layerbridge.errors import ConfigError, DataError
from tests.data.writers import write_rows


def run(*arguments, code=0):
    result = CliRunner().invoke(tasks, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def news(tmp_path):
    folder = tmp_path / "news"
    write_rows(folder / "train_en.csv", [{"sentence": "[b]a[/b] :smile:", "label": "Sports"}])
    write_rows(folder / "test_en.csv", [{"sentence": text, "label": "Science"} for text in ("x", "y", "z")])
    return folder


def test_ls_lists_every_task_of_the_table():
    output = run("ls")
    assert all(name in output for name in TASKS)
    assert "205" in output


def test_show_tells_all_facts():
    output = run("show", "sinhala_news")
    for fact in (
        "Themira/en_si_news_classification_with_label_name",
        "News Sentence: {sentence} Category: ",
        "Business / Entertainment / Political / Sports / Science",
        "Sinhala (si)",
        "2508.09091",
        "columns sentence, label",
    ):
        assert fact in output


def test_show_names_every_language_in_english():
    output = run("show", "sib200")
    assert "205 languages" in output
    assert "Sinhala (si)" in output
    assert "Tamil (ta)" in output
    assert "hub set none: the data is in the package" in run("show", "headlines")


def test_show_counts_the_rows_of_local_data(news):
    output = run("show", "sinhala_news", "--data", news)
    assert "Science 3" in output
    assert "2 readable, 0 wrong, 1 missing." in output


def test_validate_says_what_is_there_and_what_is_missing(news):
    output = run("validate", "sinhala_news", "--data", news)
    assert "Sports 1" in output
    assert "MISSING test: 1 of the task's languages (si)" in output
    assert "2 readable, 0 wrong, 1 missing." in output


def test_validate_fails_on_a_wrong_file_and_names_the_row(news):
    write_rows(news / "test_si.csv", [{"sentence": "[b]", "label": "[red]Sprot"}])
    output = run("validate", "sinhala_news", "--data", news, code=1)
    assert "WRONG test si: test_si.csv, line 2: label '[red]Sprot'" in output


def test_validate_fails_where_nothing_can_be_read(tmp_path):
    output = run("validate", "sinhala_news", "--data", tmp_path, code=1)
    assert "0 readable, 0 wrong, 3 missing." in output
    assert "The folder holds no data file" in output


def test_validate_reads_the_task_of_a_recipe(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"body": "a", "queue": "x"}])
    write_rows(tmp_path / "si.jsonl", [{"body": "a", "queue": "x"}, {"body": "b", "queue": "y"}])
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "task:\n  name: tickets\n  files: {train: train.jsonl, test: {si: si.jsonl}}\n"
        "  encoder_prompt: 'Ticket: {body} '\n  answer_column: queue\n  answers: [x, y]\n"
    )
    output = run("validate", recipe)
    assert "x 1, y 1" in output
    assert "2 readable, 0 wrong, 0 missing." in output
    with pytest.raises(ConfigError, match="names its own files"):
        run("validate", recipe, "--data", tmp_path)


def test_validate_takes_other_data_for_a_recipe_of_a_built_in_task(tmp_path, news):
    recipe = tmp_path / "news.yaml"
    recipe.write_text("task: {name: sinhala_news, data: nowhere}\n")
    assert "2 readable" in run("validate", recipe, "--data", news)
    with pytest.raises(DataError, match="No data at nowhere"):
        run("validate", recipe)


def test_an_unknown_task_and_a_missing_recipe_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'sib200'"):
        run("show", "sib2000")
    with pytest.raises(ConfigError, match="No recipe at"):
        run("validate", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("command", ["ls", "show", "validate"])
def test_each_command_has_an_example_in_its_help(command):
    assert f"Example: `layerbridge tasks {command}" in run(command, "--help")


def test_the_embedded_benchmark_is_valid():
    assert "0 wrong, 0 missing." in run("validate", "headlines")


def test_reading_text_tasks_loads_nothing_heavy():
    code = (
        "import sys; from layerbridge.data.tasks import TASKS; TASKS['headlines']().load('en', 'dev');"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
