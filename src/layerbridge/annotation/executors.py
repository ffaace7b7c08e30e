"""datatrove's executors with one shard a task: on this machine, on Slurm, on Ray.

What datatrove gives: a task for each shard, a mark of completion for each that is done (`datatrove/completions`), its
log and its statistics, and jobs for Slurm and Ray. What it does not give is done here: its local pool waits for ever
when a worker is killed, and ends everything at the first shard that fails.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import io
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from layerbridge.annotation.asking import BridgeSource, bridge_here, number_process
from layerbridge.annotation.plan import FILE, Plan, from_json, to_json
from layerbridge.annotation.shard import annotate_shard
from layerbridge.errors import AnnotationError, ConfigError, unknown_name

EXECUTORS = ("local", "slurm", "ray")
LOGS = "datatrove"
"""Folder of the output that is datatrove's."""
QUIET = 1
"""Local rank from which datatrove logs to its files alone."""

_OURS = {"self", "pipeline", "tasks", "workers", "logging_dir", "depends", "skip_completed", "start_method"}
"""Parameters of datatrove's executors that are not options of a user."""
_PLANS: dict[str, Plan] = {}
"""The plan of this process, by the sha256 of its file."""


class AnnotateStep(PipelineStep):
    """The one step of the pipeline: a task's number is the rank of its shard.

    Args:
        source: folder or URL of the corpus.
        output: folder or URL of the annotation, where the plan is.
        bridge: where to load it from.
        plan: that it is of; a task reads it from the output, for it may have very many shards.
    """

    name = "annotate"
    type = "layerbridge"

    def __init__(self, source: str, output: str, bridge: BridgeSource, plan: Plan) -> None:
        super().__init__()
        self.source = source
        self.output = output
        self.bridge = bridge
        self.plan_sha256 = _sha256(to_json(plan))

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Annotate the shard of a rank; nothing goes on to a further step.

        Raises:
            AnnotationError: the shard could not be annotated.
        """
        output = get_datafolder(self.output)
        if self.plan_sha256 not in _PLANS:
            text = output.cat_file(FILE).decode()
            if _sha256(text) != self.plan_sha256:
                raise ConfigError(f"{self.output}/{FILE} is not what this task was begun with. Start it again.")
            _PLANS.clear()
            _PLANS[self.plan_sha256] = from_json(text, FILE)
        bridge = bridge_here(self.bridge)
        record = annotate_shard(_PLANS[self.plan_sha256], rank, get_datafolder(self.source), output, bridge)
        self.stat_update("rows", value=record.rows)
        self.stat_update("rejected", value=sum(record.rejected.values()))
        self.stat_update("tokens", value=record.tokens)


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor in processes that may be killed: the rest of the work then ends, and says so.

    A shard that fails leaves its record and no mark of completion, and the other shards go on. One worker works in this
    process.
    """

    def run(self) -> None:
        """Do all shards that are not done.

        Raises:
            AnnotationError: a worker was killed.
        """
        ranks = self.get_incomplete_ranks(range(self.local_rank_offset, self.local_rank_offset + self.local_tasks))
        if not ranks:
            return
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                _work(deepcopy(self), rank)
            return
        count = min(self.workers, len(ranks))
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        threads = max(1, torch.get_num_threads() // count)
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(count, context, _begin, (context.Value("i", 0), threads))
        try:
            for future in as_completed([pool.submit(_work, self, rank) for rank in ranks]):
                future.result()
        except BrokenProcessPool:
            raise AnnotationError(
                "A worker was killed, or ran out of memory. No finished shard is lost: give the same command again. "
                "If it was memory, take fewer --workers or lower --batch-tokens."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()  # idle, or at a shard that is done again


def build_executor(
    kind: str,
    step: AnnotateStep,
    *,
    tasks: int,
    part: range,
    workers: int,
    options: Mapping[str, str],
) -> PipelineExecutor:
    """Return the executor that runs a step for every shard.

    Args:
        kind: one of `EXECUTORS`.
        step: of the pipeline.
        tasks: number of shards.
        part: ranks to do here, of all of them.
        workers: shards at the same time.
        options: datatrove's, by the names of its executor's parameters, for Slurm and Ray.

    Raises:
        ConfigError: an unknown executor or option, or a program or package that is missing.
    """
    if kind not in EXECUTORS:
        raise ConfigError(unknown_name("executor", kind, EXECUTORS))
    shared: dict[str, Any] = {
        "pipeline": [step],
        "tasks": tasks,
        "workers": workers,
        "logging_dir": f"{step.output.rstrip('/')}/{LOGS}",
    }
    if kind == "local":
        if options:
            raise ConfigError("--executor-option is for --executor slurm and ray; the local one has --workers.")
        return LocalExecutor(**shared, local_tasks=len(part), local_rank_offset=part.start)
    if len(part) != tasks:
        raise ConfigError(f"--part is for --executor local; {kind} has workers on other machines itself.")
    if kind == "slurm":
        if shutil.which("sbatch") is None:
            raise ConfigError("The Slurm executor needs `sbatch`, which is not here. Give the command on a login node.")
        given = _typed(SlurmPipelineExecutor, options)
        missing = [name for name in ("time", "partition") if name not in given]
        if missing:
            raise ConfigError(f"The Slurm executor needs --executor-option {missing[0]}=...")
        return SlurmPipelineExecutor(**shared, **({"job_name": "annotate", "mail_type": "NONE"} | given))
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("The Ray executor needs ray. Install it: pip install ray")
    address = {name: value for name, value in options.items() if name == "address"}
    given = _typed(RayPipelineExecutor, {name: value for name, value in options.items() if name != "address"})
    return _with_ray(RayPipelineExecutor(**shared, **given), address)


def _with_ray(executor: RayPipelineExecutor, address: Mapping[str, str]) -> RayPipelineExecutor:
    """Connect to a Ray cluster, or start one here, unless this process is in one."""
    import ray

    if not ray.is_initialized():
        ray.init(**address, log_to_driver=False)
    return executor


def _typed(kind: type[PipelineExecutor], options: Mapping[str, str]) -> dict[str, Any]:
    """Return options as an executor's parameters; `sbatch.NAME` and `ray.NAME` go on to sbatch and ray.remote."""
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in _OURS and not isinstance(parameter.default, dict)
    }
    further = {"sbatch": "sbatch_args", "ray": "ray_remote_kwargs"}
    found: dict[str, Any] = {}
    for name, text in options.items():
        group, dot, rest = name.partition(".")
        if dot and further.get(group) in parameters:
            found.setdefault(further[group], {})[rest] = text
            continue
        if name not in parameters:
            raise ConfigError(unknown_name("executor option", name, parameters))
        found[name] = _number(name, text, parameters[name])
    return found


def _number(name: str, text: str, default: Any) -> Any:
    """Return a value in the type of its default; times and names stay text."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"Executor option {name} is {text!r}; wanted true or false.")
        return text.lower() == "true"
    if not isinstance(default, int | float):
        return int(text) if name == "time" and text.isdigit() else text
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)  # memory may be half a GB
    except ValueError:
        raise ConfigError(f"Executor option {name} is {text!r}; wanted a number.") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _begin(counter: "Synchronized[int]", threads: int) -> None:
    """Prepare a worker: its number and threads; it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with counter.get_lock():
        number_process(counter.value)
        counter.value += 1
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(executor: LocalExecutor, rank: int) -> PipelineStats:
    """Do one shard; one that fails has said so in its record."""
    with contextlib.redirect_stderr(io.StringIO()):  # datatrove's log is in its files
        try:
            return executor._run_for_rank(rank, QUIET)
        except AnnotationError:
            return PipelineStats()
