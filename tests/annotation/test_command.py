"""The command: what it prints, its exit codes, and what it says when a package is missing."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from layerbridge.annotation.progress import Watch, Work, duration
from layerbridge.annotation.records import Record, write_record
from layerbridge.cli import app
from layerbridge.errors import AnnotationError, ConfigError
from tests.annotation.corpus import files, write_corpus


def command(*arguments):
    result = CliRunner().invoke(app, ["annotate", *map(str, arguments)], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_command_prints_rows_rejects_and_speed_and_a_plan_before(run, tmp_path):
    corpus = write_corpus(tmp_path / "in", shards=2, rows=20)
    planned = command(run, corpus, tmp_path / "out", "--plan", "--keep", "id, text")
    for wanted in (
        "2 shards, about 5",
        "25 rows, of them 5 rejected",
        "positive, negative, neutral",
        "100,000,000 such",
    ):
        assert wanted in planned
    shown = command(run, corpus, tmp_path / "out", "--keep", "id, text")
    for wanted in ("2 of 2", "rejected: not_json", "a line that is not JSON", "rows a second", "/rejects"):
        assert wanted in shown
    again = command(run, corpus, tmp_path / "out", "--keep", "id,text")
    assert "nothing was left to do" in again
    assert "nothing" in command(run, corpus, tmp_path / "out", "--keep", "id,text", "--plan")


def test_a_failed_shard_is_named_and_the_others_are_summed(run, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "in", shards=1, rows=5)
    (corpus / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(AnnotationError, match=r"1 of 2 shards failed.*\n  broken\.parquet: ArrowInvalid"):
        command(run, corpus, tmp_path / "out")
    assert "data/shard-0.jsonl" in files(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--field", "text"], r"--field 'text' is not of the form NAME=COLUMN"),
        (["--executor-option", "=3"], r"--executor-option '=3' is not of the form NAME=VALUE"),
        (["--part", "2"], r"--part '2' is not of the form K/N"),
    ],
)
def test_options_of_another_form_are_refused(run, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        command(run, tmp_path, tmp_path / "out", *arguments)


def test_without_datatrove_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['datatrove'] = None\n"
        "from layerbridge.cli import main; sys.argv = ['layerbridge', 'annotate', 'run', 'in', 'out']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'layerbridge[scale]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_counts_shards_under_way_and_tells_what_is_left(tmp_path):
    from datatrove.io import get_datafolder

    output = get_datafolder(str(tmp_path))
    watch = Watch(output, Work(sizes={1: 100, 2: 100, 5: 200}, num_shards=6, workers=1))
    assert watch.facts() == {"rows": 0, "shards": 3, "rows_per_second": None, "left": None}
    write_record(output, 1, Record(shard="a", rows=10, read=50))
    watch.look()
    write_record(output, 1, Record(shard="a", state="done", rows=20, read=100))
    write_record(output, 2, Record(shard="b", rows=5, read=25))
    watch.look()
    facts = watch.facts()
    assert (facts["rows"], facts["shards"]) == (25, 4)
    assert facts["rows_per_second"] > 0
    assert facts["left"] > 0


def test_durations_are_told_in_words():
    assert (duration(5), duration(125), duration(7260)) == ("0 min 05 s", "2 min 05 s", "2 h 01 min")
