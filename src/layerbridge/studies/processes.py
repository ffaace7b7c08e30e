"""A study's processes: those that torchrun started, or workers that the first process starts itself.

They share nothing but the study's folder. Under torchrun each does whole jobs on its own GPU; no gradients are
exchanged, so what torchrun put into the environment for that is taken out again.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

WORKER = "LAYERBRIDGE_STUDY_WORKER"
"""Environment variable of a worker that a study started: its parent's process id."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of a study's processes this is."""

    rank: int
    world: int

    @property
    def leads(self) -> bool:
        """Whether it is the one that talks to the user and writes the report."""
        return self.rank == 0


def take_place() -> Place:
    """Return this process's place among torchrun's, and leave no trace of torchrun; call it before torch is used."""
    place = Place(rank=int(os.environ.get("RANK", "0")), world=int(os.environ.get("WORLD_SIZE", "1")))
    if "RANK" in os.environ:
        _take_gpu(os.environ, int(os.environ.get("LOCAL_RANK", "0")))
        for name in [*TORCHRUN, *(name for name in os.environ if name.startswith("TORCHELASTIC"))]:
            os.environ.pop(name, None)
    if WORKER in os.environ:
        _leave_with_parent(int(os.environ[WORKER]))
        return Place(rank=1, world=1)
    return place


def start_workers(arguments: Sequence[str], *, count: int, threads: int, num_gpus: int) -> list[subprocess.Popen]:
    """Start processes that do the same command's work beside this one.

    Args:
        arguments: of the command line, without the program.
        count: how many.
        threads: of each.
        num_gpus: of the machine; each process gets one, in turn, this one the first.
    """
    workers = []
    for number in range(1, count + 1):
        environment = {**os.environ, WORKER: str(os.getpid()), "OMP_NUM_THREADS": str(threads)}
        _take_gpu(environment, number % num_gpus if num_gpus else 0)
        command = [sys.executable, "-m", "layerbridge.cli", *arguments]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    return workers


def stop_workers(workers: Sequence[subprocess.Popen], *, wait: bool) -> None:
    """Wait for workers to finish, or end them; what they were at is done again next time."""
    for worker in workers:
        if not wait:
            worker.terminate()
        worker.wait()


def _take_gpu(environment: MutableMapping[str, str], number: int) -> None:
    """Leave one of the visible GPUs visible, counted round; none where the user made none visible."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = [str(number)] if visible is None else [name for name in visible.split(",") if name.strip()]
    environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)] if devices else ""


def _leave_with_parent(parent: int) -> None:
    """End this process soon after its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
