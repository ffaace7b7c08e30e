"""Studies that distil on files of texts: encoded once, known by what they say and not by where they lie."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.errors import ConfigError, DataError
from layerbridge.studies.inputs import InputCache
from layerbridge.studies.job_keys import job_keys
from layerbridge.studies.reproduce import _definition
from layerbridge.studies.study import jobs_of, load_study
from tests.studies.grid import write_study
from tests.studies.test_reproduce import FEW, pairs_without_sweep, reproduce

TEXTS = "the cat sat on the mat\none two three\nfour\n"
JOB = "out/headlines/distilled-seed-0"


def write(folder, tiny_models, **changes):
    """Write a study of which one set-up distils on a file of texts for each task; return what to type for it."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    (folder / "texts/headlines.txt").write_text(TEXTS)
    distillation = {"weight": 0.0, "epochs_before": 1, "texts": "texts/{task}.txt"}
    keys = {
        "tasks": {"headlines": FEW},
        "seeds": [0],
        "baselines": [],
        "pairs": pairs_without_sweep(tiny_models),
        "set_ups": {
            "last_layer": {"fusion": "last_layer"},
            "distilled": {"fusion": "last_layer", "training": {"self_distillation": distillation}},
        },
    }
    return arguments(write_study(folder, tiny_models, **keys | changes))


def arguments(small):
    folder = small.parent
    return [small, "--out", folder / "out", "--cache", folder / "cache", "--workers", 1]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_studys_texts_are_encoded_once_and_not_by_each_run(tmp_path, tiny_models):
    reproduce(*write(tmp_path, tiny_models, seeds=[0, 1]))
    jobs = sorted(tmp_path.glob("out/headlines/*/job.json"))
    assert [read(path)["encoder_passes"] for path in jobs] == [0] * 4
    assert read(tmp_path / JOB / "run.json")["features"]["texts_left_out"] == 0
    shards = [load_file(path)["digests_T"] for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(len(shard) for shard in shards) == 8 + 4 + 36 + 6 + 3


def test_a_moved_study_goes_on_and_one_whose_texts_were_edited_is_refused(tmp_path, tiny_models):
    reproduce(*write(tmp_path / "here", tiny_models))
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = arguments(tmp_path / "there/small.yaml")
    assert "2 of them done" in reproduce(*moved, "--plan")
    (tmp_path / "there/texts/headlines.txt").write_text(TEXTS + "five\n")
    result = CliRunner().invoke(app, ["reproduce", *map(str, moved), "--plan"])
    assert isinstance(result.exception, ConfigError)
    assert re.search(
        "The texts that headlines/distilled distils on say something else now than when .*there/out was begun. Put",
        str(result.exception),
    )


def without_texts(record):
    return {key: value for key, value in record.items() if key != "texts"}


def as_once(folder):
    """Make a study's folder what it was when definitions and keys held where texts lie."""
    small = load_study(str(folder / "small.yaml"))
    record = read(folder / "out/study.json")
    rest, set_ups = _definition(small, "tiny", by_path=True)
    assert rest == record["definition_sha256"], "without texts it is what it was"
    assert [name for name in set_ups if set_ups[name] != record["set_ups"][name]] == ["distilled"]
    (folder / "out/study.json").write_text(json.dumps(without_texts(record) | {"set_ups": set_ups}))
    _, pair = small.pair(None)
    for job in jobs_of(small, pair, {"headlines": {}}):
        path = folder / "out" / job.place / "job.json"
        before, once = read(path), job_keys(job, InputCache(), by_path=True)[0]
        assert (before["key"] == once) == (job.name == "last_layer-seed-0"), "without texts it is what it was"
        path.write_text(json.dumps(before | {"key": once}))
    return record


def test_texts_of_a_task_that_was_never_run_here_may_come_change_and_go(tmp_path, tiny_models):
    """Only what planned jobs distil on binds a folder."""
    command = write(tmp_path, tiny_models, tasks={"headlines": FEW, "xnli": {}})
    only = [*command, "--tasks", "headlines"]
    reproduce(*only)
    record = read(tmp_path / "out/study.json")
    assert list(record["texts"]) == ["headlines/distilled"]
    other = tmp_path / "texts/xnli.txt"
    for text in ("one\n", "two\n", None):
        other.unlink() if text is None else other.write_text(text)
        assert "2 of them done" in reproduce(*only, "--plan")
        assert "2 of them done" in reproduce(*only)
        assert read(tmp_path / "out/study.json") == record


def test_edited_texts_do_not_hinder_set_ups_that_read_none(tmp_path, tiny_models):
    command = write(tmp_path, tiny_models)
    reproduce(*command)
    (tmp_path / "texts/headlines.txt").unlink()
    record = read(tmp_path / "out/study.json")
    reproduce(*command, "--set-ups", "last_layer")
    assert read(tmp_path / "out/study.json") == record
    result = CliRunner().invoke(app, ["reproduce", *map(str, command), "--seeds", "1"])
    assert isinstance(result.exception, DataError)
    (tmp_path / "texts/headlines.txt").write_text("another\n")
    result = CliRunner().invoke(app, ["reproduce", *map(str, command), "--seeds", "1"])
    assert "headlines/distilled distils on say something else" in str(result.exception), "another seed is no way round"


def test_a_folder_of_before_texts_were_what_they_say_goes_on_and_notices_edits_from_then_on(tmp_path, tiny_models):
    command = write(tmp_path, tiny_models)
    reproduce(*command)
    record = as_once(tmp_path)
    assert "2 of them done" in reproduce(*command, "--plan")
    reproduce(*command)
    assert read(tmp_path / "out/study.json") == record


def test_a_run_on_other_texts_than_there_are_now_is_trained_anew(tmp_path, tiny_models):
    """Also one that is finished: its bridge learned from what is no longer there."""
    command = write(tmp_path, tiny_models)
    reproduce(*command)
    as_once(tmp_path)
    before = read(tmp_path / JOB / "run.json")
    (tmp_path / "texts/headlines.txt").write_text(TEXTS + "five\n")
    assert "1 of them done" in reproduce(*command, "--plan")
    reproduce(*command)
    after = read(tmp_path / JOB / "run.json")
    assert (before["stage"]["rows"], after["stage"]["rows"]) == (3, 4)
    assert after["stage_sha256"] != before["stage_sha256"]
    assert "2 of them done" in reproduce(*command, "--plan")


def test_texts_that_are_not_there_are_refused_before_anything_is_done(tmp_path, tiny_models):
    command = write(tmp_path, tiny_models)
    (tmp_path / "texts/headlines.txt").unlink()
    result = CliRunner().invoke(app, ["reproduce", *map(str, command)])
    assert isinstance(result.exception, DataError)
    assert "headlines.txt, which training.self_distillation.texts names" in str(result.exception)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_a_loss_cannot_be_worked_out_on_are_refused_before_anything_is_encoded(tmp_path, tiny_models, rows):
    task = {"headlines": FEW | {"task": {**FEW["task"], "max_train_rows": rows}}}
    fusion = {"fusion": "global_softmax", "training": {"noise_agreement": {}}}
    set_ups = {"last_layer": {"fusion": "last_layer"}, "agreeing": fusion}
    command = write(tmp_path, tiny_models, tasks=task, set_ups=set_ups)
    if rows == 2:
        reproduce(*command)
        return
    result = CliRunner().invoke(app, ["reproduce", *map(str, command)])
    assert isinstance(result.exception, DataError)
    assert "headlines/agreeing-seed-0: training.noise_agreement compares English texts" in str(result.exception)
    assert not (tmp_path / "cache").exists()


def test_a_study_says_which_set_ups_it_has_and_a_choice_which_of_them_were_never_run(tmp_path, tiny_models):
    select = {"training": {"max_steps": 1, "select": "last"}, "evaluation": {"split": "held_out"}}
    command = write(tmp_path, tiny_models, tasks={"headlines": {**FEW, **select}})
    reproduce(*command, "--set-ups", "last_layer")
    assert sorted(read(tmp_path / "out/study.json")["all_set_ups"]) == ["distilled", "last_layer"]
    log = ["select", str(tmp_path / "out"), "--out", str(tmp_path / "log")]
    assert CliRunner().invoke(app, log, catch_exceptions=False).exit_code == 0
    assert (
        "Never run on headlines: 1 of the 2 set-ups of study small: distilled."
        in (read(tmp_path / "log/selection.json")["notes"])
    )
