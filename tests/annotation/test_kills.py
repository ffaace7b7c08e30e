"""SIGKILL at any moment: the rerun ends in the bytes of a run that nobody disturbed."""

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from datatrove.executor.base import PipelineExecutor

from layerbridge.annotation.rows import WINDOW_ROWS
from layerbridge.errors import AnnotationError
from tests.annotation.corpus import call, files, write_corpus

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of a few rows, so that a shard has many moments to be killed at."""
    monkeypatch.setattr("layerbridge.annotation.jsonl.WINDOW_ROWS", 7)
    monkeypatch.setattr("layerbridge.annotation.shard.RECORD_EVERY", 0.0)
    assert WINDOW_ROWS > 7


def killed_after(seconds: float | None, *arguments, **options) -> bool:
    """Annotate in a fork that is killed after some seconds, or kills itself; return whether it was still at it."""
    child = os.fork()
    if child == 0:
        try:
            call(*arguments, **options)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_random_moments_and_rerun_it_is_what_an_undisturbed_run_writes(run, tmp_path, small_windows):
    corpus = write_corpus(tmp_path / "in", shards=4, rows=20)
    start = time.perf_counter()
    call(run, corpus, tmp_path / "undisturbed")
    whole = time.perf_counter() - start
    draw = random.Random(time.time_ns())
    kills = sum(killed_after(draw.uniform(0, whole), run, corpus, tmp_path / "killed") for _ in range(4))
    assert kills, "no kill came before the end"
    report = call(run, corpus, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")
    assert report.sums["rows"] == 4 * 25
    assert not [path for path in (tmp_path / "killed/partial").iterdir() if path.is_file()]


@pytest.mark.parametrize("point", ["before the rejects move", "before the data move", "before the mark"])
def test_a_kill_between_two_files_loses_and_doubles_nothing(run, tmp_path, point, monkeypatch):
    corpus = write_corpus(tmp_path / "in", shards=2, rows=12)
    call(run, corpus, tmp_path / "undisturbed")
    replace = Path.replace

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(self, target):
        kind = {"before the rejects move": "rejects", "before the data move": "data"}.get(point)
        if Path(target).parent.name == kind and "shard-1" in str(target):
            die()
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace_or_die)
        if point == "before the mark":
            patched.setattr(PipelineExecutor, "mark_rank_as_completed", die)
        assert killed_after(None, run, corpus, tmp_path / "killed"), "it ended without dying"
    call(run, corpus, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")
    assert not list((tmp_path / "killed/partial").iterdir())


def test_a_killed_worker_ends_the_call_with_a_message_and_the_rerun_finishes(run, tmp_path):
    corpus = write_corpus(tmp_path / "in", shards=4, rows=60)
    out = tmp_path / "out"
    victims = []

    def kill_one() -> None:
        while not victims:
            time.sleep(0.05)
            if list(out.glob("datatrove/logs/task_*")):
                time.sleep(random.random() / 3)
                workers = [child for child in multiprocessing.active_children() if "Spawn" in type(child).__name__]
                victims.append(random.choice(workers))
                os.kill(victims[0].pid, signal.SIGKILL)

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(AnnotationError, match=r"A worker was killed.*give the same command again"):
        call(run, corpus, out, workers=2)
    assert victims
    deadline = time.monotonic() + 20
    while [child for child in multiprocessing.active_children() if "Spawn" in type(child).__name__]:
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)
    report = call(run, corpus, out)
    assert report.sums["rows"] == 4 * 65
    call(run, corpus, tmp_path / "undisturbed")
    assert files(out) == files(tmp_path / "undisturbed")
