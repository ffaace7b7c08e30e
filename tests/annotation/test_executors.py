"""Slurm and Ray through datatrove: the same output, or a clear word on what is missing."""

import importlib.util
import json
import os
import stat

import pytest

from layerbridge.errors import ConfigError
from tests.annotation.corpus import call, files, write_corpus

HAS_RAY = importlib.util.find_spec("ray") is not None
SLURM = {"time": "01:00:00", "partition": "gpu", "gpus_per_task": "1", "tasks_per_job": "2", "sbatch.account": "me"}


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "in", shards=5, rows=10)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program that takes scripts and starts none."""
    place = tmp_path / "bin" / "sbatch"
    place.parent.mkdir()
    place.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    place.with_name("scontrol").write_text("#!/bin/sh\necho node-1\n")
    for program in place.parent.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SLURM_NODELIST", "node-1")  # of a job
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")


def test_slurm_jobs_write_what_local_workers_write(run, corpus, tmp_path, sbatch, monkeypatch):
    import dill

    out = tmp_path / "slurm"
    report = call(run, corpus, out, executor="slurm", executor_options=SLURM)
    assert report.submitted == "7"
    script = (out / "datatrove/launch_script.slurm").read_text()
    for wanted in ("--partition=gpu", "--time=01:00:00", "--account=me", "--array=0-2", "launch_pickled_pipeline"):
        assert wanted in script
    for task in ("0", "1", "2"):  # what the script's jobs do
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        with (out / "datatrove/executor.pik").open("rb") as file:
            dill.load(file).run()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    report = call(run, corpus, out, executor="slurm", executor_options=SLURM)
    assert report.submitted is None
    assert report.sums["shards"] == 5
    call(run, corpus, tmp_path / "local")
    assert files(out) == files(tmp_path / "local")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs --executor-option time=\.\.\."),
        ({"time": "1:00"}, r"needs --executor-option partition=\.\.\."),
        ({"tim": "1:00"}, r"Unknown executor option 'tim'\. Did you mean 'time'"),
        (SLURM | {"gpus_per_task": "one"}, r"gpus_per_task is 'one'; wanted a number"),
        (SLURM | {"requeue": "maybe"}, r"requeue is 'maybe'; wanted true or false"),
    ],
)
def test_slurm_options_that_cannot_be_are_refused(run, corpus, tmp_path, sbatch, options, message):
    with pytest.raises(ConfigError, match=message):
        call(run, corpus, tmp_path / "out", executor="slurm", executor_options=options)


def test_slurm_without_sbatch_says_so(run, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="needs `sbatch`, which is not here"):
        call(run, corpus, tmp_path / "out", executor="slurm", executor_options=SLURM)


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_ray_that_is_not_installed_is_named_with_what_to_do(run, corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"The Ray executor needs ray\. Install it: pip install ray"):
        call(run, corpus, tmp_path / "out", executor="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
def test_ray_tasks_write_what_local_workers_write(run, corpus, tmp_path):
    call(run, corpus, tmp_path / "ray", executor="ray", workers=2, executor_options={"mem_per_cpu_gb": "0.5"})
    call(run, corpus, tmp_path / "local")
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_the_executor_file_is_small_however_many_shards_there_are(run, corpus, tmp_path):
    call(run, corpus, tmp_path / "out")
    kept = json.loads((tmp_path / "out/datatrove/executor.json").read_text())
    assert "shard-0" not in json.dumps(kept)
