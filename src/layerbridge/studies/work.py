"""Doing a study's work: any number of processes, none of them in charge, each killed at any moment without harm.

A job is claimed by a lock that the operating system gives back when its holder dies, and is done when its `job.json` is
there, which is written last. So the same command goes on where it was, whoever did the rest.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from filelock import FileLock, Timeout

from layerbridge.atomic import replace_text
from layerbridge.config import TranslatorConfig
from layerbridge.errors import ConfigError, DataError, LayerbridgeError
from layerbridge.evaluation.baselines import evaluate_llm_alone
from layerbridge.evaluation.linear_probe import States, evaluate_linear_probe
from layerbridge.evaluation.predict import evaluate_bridge
from layerbridge.evaluation.run_folder import EVALUATION, evaluation_name, find_run
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import TENSORS, load_trained, read_header, read_tensors
from layerbridge.model.features import FeaturePlan, FeatureStore
from layerbridge.model.llm_reader import LLMReader
from layerbridge.results import setup_sha256
from layerbridge.studies.inputs import InputCache, encoder_parts
from layerbridge.studies.job_keys import job_keys
from layerbridge.studies.study import Job
from layerbridge.training.distillation_stage import STAGE
from layerbridge.training.features import kept_precision, open_store
from layerbridge.training.objective import check_rows
from layerbridge.training.run import read_record
from layerbridge.training.train import train

JOB_FILE = "job.json"
LOCKS = "locks"
PROBE = "linear_probe"
READS_ENCODER = ("bridge", "linear_probe_last_layer")
"""Kinds of jobs that read an encoder's states."""
LLM_SOURCE_TOKENS = 512
"""What the LLM alone reads of a text at least."""

Say = Callable[[str], None]


class StudyError(LayerbridgeError):
    """Some of a study's jobs failed; the others are done."""


@dataclass(kw_only=True)
class Workshop:
    """What one process works with.

    Args:
        out: the study's folder.
        cache: folder of encoder features.
        cache_bytes: how large it may get.
        probe_fused: whether each bridge of the main grid is followed by a linear probe on its fused states.
        keep_checkpoints: keep what a finished run could be resumed from.
        translator: of the baseline `translate_then_llm`.
        say: takes a line for the user.
    """

    out: Path
    cache: Path
    cache_bytes: int
    probe_fused: bool = False
    keep_checkpoints: bool = False
    translator: TranslatorConfig | None = None
    say: Say = print
    inputs: InputCache = field(default_factory=InputCache)
    passes_encoding: int = 0
    """Encoder passes that filled the feature store."""
    _latest: Bridge | None = None
    _stores: dict[str, FeatureStore] = field(default_factory=dict)
    _keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def is_done(self, job: Job) -> bool:
        """Return whether a job is done, by this recipe, on these rows and by these versions."""
        key = _read_json(self._folder(job) / JOB_FILE).get("key")
        if key is None or key in self._keys_of(job):
            return key is not None
        texts = self.inputs.texts(job.recipe)
        if texts is None or read_record(self._folder(job)).get("stage_sha256") != texts.sha256:
            return False
        return key in job_keys(job, self.inputs, by_path=True)  # the run's record says what such a key does not

    def seconds(self, job: Job) -> float:
        """Return how long a done job took on the clock."""
        return float(_read_json(self._folder(job) / JOB_FILE).get("seconds", 0.0))

    def lock(self, folder: Path, place: str) -> FileLock:
        """Return the lock of one piece of work in a folder; the operating system frees it when its holder dies."""
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        return FileLock(folder / LOCKS / f"{place.replace('/', '--')}.lock", timeout=0, fallback_to_soft=False)

    # ---------------------------------------------------------------------------------------------------------------
    # Features

    def plan_features(self, jobs: Sequence[Job]) -> dict[str, FeaturePlan]:
        """Return what is to be encoded, by encoder and precision; encoders that train have nothing to keep.

        The first ones come first: what they leave of the cache is for the next.

        Args:
            jobs: all of the study's, done or not: which texts are encoded together must not depend on where it was cut
                off.

        Raises:
            DataError: rows that a job's losses cannot be worked out on.
        """
        self._check_rows(jobs)
        plans: dict[str, FeaturePlan] = {}
        for key, mine in self._by_encoder(jobs).items():
            bridge = self.bridge(mine[0])
            store = self._store(key, bridge, mine[0].recipe.training.feature_precision)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # texts that are cut are counted in every result
                room = self.cache_bytes - sum(plan.num_bytes for plan in plans.values())
                plans[key] = store.plan(encoder_parts(mine, self.inputs, bridge.processor), room)
        return plans

    def missing(self, plans: dict[str, FeaturePlan]) -> tuple[int, int]:
        """Return how many texts are still to be encoded, and how many bytes that will take."""
        texts = size = 0
        for key, plan in plans.items():
            for shard in self._stores[key].missing(plan):
                texts += len(shard.rows)
                size += sum(map(len, shard.rows)) * self._stores[key].bytes_per_token
        return texts, size

    def encode(self, plans: dict[str, FeaturePlan], *, on_texts: Callable[[int], None] | None = None) -> None:
        """Encode what is missing, together with the other processes, and wait until all of it is there."""
        beside = [(self._stores[key], plan) for key, plan in plans.items()]
        for store, plan in beside:
            before = store.encoder.num_passes
            store.fill(plan, max_bytes=self.cache_bytes, beside=beside, on_texts=on_texts)
            self.passes_encoding += store.encoder.num_passes - before

    def _check_rows(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                if job.kind == "bridge":
                    check_rows(job.recipe.training, self.inputs.of(job.recipe).train.examples)
            except DataError as error:
                raise DataError(f"{job.place}: {error}") from None

    def _by_encoder(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for job in jobs:
            encoder = job.recipe.encoder
            if job.kind in READS_ENCODER and encoder.lora is None and not encoder.train_biases:
                found.setdefault(_store_key(job), []).append(job)
        return found

    def _store(self, key: str, bridge: Bridge, precision: str) -> FeatureStore:
        if key not in self._stores:
            self._stores[key] = open_store(bridge, self.cache, precision)
        return self._stores[key]

    # ---------------------------------------------------------------------------------------------------------------
    # Jobs

    def run(self, jobs: Sequence[Job], *, on_done: Callable[[Job, float], None] | None = None) -> None:
        """Do all jobs, together with other processes that do the same, and return when none is left.

        Args:
            jobs: in the order in which they are tried.
            on_done: called with each job that this process did, and its seconds.

        Raises:
            StudyError: some failed; says which and why. The others are done.
        """
        failed: dict[str, str] = {}
        while left := [job for job in jobs if job.place not in failed and not self.is_done(job)]:
            claimed = False
            for job in left:
                try:
                    with self.lock(self.out, job.place):
                        claimed = True
                        if self.is_done(job):
                            continue
                        began = time.monotonic()
                        self.do(job)
                        if on_done is not None:
                            on_done(job, time.monotonic() - began)
                except Timeout:
                    continue
                except (LayerbridgeError, RuntimeError, OSError) as error:  # also a GPU or a disk that is full
                    failed[job.place] = f"{error}" if isinstance(error, LayerbridgeError) else repr(error)
                    self.say(f"{job.place} failed: {failed[job.place]}")
                    self._latest = None
            if not claimed:
                time.sleep(0.5)
        failed = {job.place: failed[job.place] for job in jobs if job.place in failed and not self.is_done(job)}
        if failed:
            reasons = "\n".join(f"  {place}: {reason}" for place, reason in failed.items())
            raise StudyError(f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again:\n{reasons}")

    def do(self, job: Job) -> None:
        """Do one job, whole."""
        from threadpoolctl import threadpool_limits

        began, began_computing = time.monotonic(), time.process_time()
        folder = self._folder(job)
        with _only_errors(), threadpool_limits(torch.get_num_threads()):
            passes = {
                "bridge": self._train_and_evaluate,
                "linear_probe_last_layer": self._probe_last_layer,
                "llm_alone": self._ask_llm,
                "translate_then_llm": self._ask_llm,
            }[job.kind](job, folder)
        store = self._stores.get(_store_key(job)) if job.kind in READS_ENCODER else None
        record = {
            "key": self._keys_of(job)[0],
            "encoder_passes": passes,
            "features": None if store is None else kept_precision(store),
            "seconds": round(time.monotonic() - began, 1),
            "processor_seconds": round(time.process_time() - began_computing, 1),
        }
        replace_text(folder / JOB_FILE, json.dumps(record, indent=2) + "\n")

    def bridge(self, job: Job) -> Bridge:
        """Return an untrained bridge for a job, on bases that are in memory already where they are the same."""
        self._latest = Bridge.build(job.recipe.bridge, seed=job.recipe.training.seed, like=self._latest)
        self._latest.features = self._stores.get(_store_key(job))
        return self._latest

    def _train_and_evaluate(self, job: Job, folder: Path) -> int:
        recipe = job.recipe
        bridge = self.bridge(job)
        rows_changed = self._rows_changed(job, folder)
        if read_record(folder).get("status") == "finished" and not rows_changed:
            header = read_header(folder / "checkpoint")
            load_trained(bridge, read_tensors(folder / "checkpoint" / TENSORS), where=str(folder))
            bridge.trained_on = header.get("trained_on")
        else:
            bridge = train(recipe, folder, progress=False, bridge=bridge, overwrite=rows_changed)
        read, out = self.inputs.of(recipe), self._evaluation(job, job.name)
        evaluate_bridge(bridge, find_run(folder), read.task, read.splits, recipe.evaluation, out)
        if self.probe_fused and bridge.fusion.mixes:  # of one layer there is the probe on that layer
            self._probe(bridge, job, f"{PROBE}-{recipe.name}", "fused")
        if not self.keep_checkpoints:
            for part in (folder, folder / STAGE):
                rmtree(part / "checkpoints", ignore_errors=True)
        return bridge.encoder.num_passes

    def _rows_changed(self, job: Job, folder: Path) -> bool:
        """Return whether the run in a job's folder was begun on other rows or texts than are there now."""
        record, read, texts = read_record(folder), self.inputs.of(job.recipe), self.inputs.texts(job.recipe)
        now = {"train_sha256": read.train.sha256, "dev_sha256": read.dev.sha256}
        now |= {} if texts is None else {"stage_sha256": texts.sha256}
        return any(record.get(key, sha256) != sha256 for key, sha256 in now.items())

    def _probe_last_layer(self, job: Job, folder: Path) -> int:
        bridge = self.bridge(job)
        self._probe(bridge, job, job.name, "last_layer")
        return bridge.encoder.num_passes

    def _probe(self, bridge: Bridge, job: Job, name: str, states: States) -> None:
        recipe, read = job.recipe, self.inputs.of(job.recipe)
        evaluate_linear_probe(
            bridge,
            read.task,
            recipe.task,
            read.splits,
            recipe.evaluation,
            self._evaluation(job, name),
            states=states,
            seed=recipe.training.seed,
            run=name,
            bridge_setup_sha256=setup_sha256(recipe) if states == "fused" else None,
            max_train_source_tokens=recipe.training.max_source_tokens,
        )

    def _ask_llm(self, job: Job, folder: Path) -> int:
        recipe = job.recipe
        read = self.inputs.of(recipe)
        translator = None
        if job.kind == "translate_then_llm":
            from layerbridge.model.translator import Translator

            if self.translator is None:
                raise ConfigError("translate_then_llm needs a translator, and the study has none.")
            translator = Translator.build(self.translator)
        # Its tokens are the LLM's, and a language it was not made for takes many of them.
        longest = max(LLM_SOURCE_TOKENS, recipe.evaluation.max_source_tokens)
        evaluate_llm_alone(
            LLMReader.build(recipe.llm.model_copy(update={"lora": None}), recipe.prompt),
            read.task,
            read.splits,
            recipe.evaluation.model_copy(update={"max_source_tokens": longest}),
            self._evaluation(job, job.name),
            run=recipe.name,
            translator=translator,
        )
        return 0

    def _keys_of(self, job: Job) -> tuple[str, ...]:
        if job.place not in self._keys:
            self._keys[job.place] = job_keys(job, self.inputs)
        return self._keys[job.place]

    def _evaluation(self, job: Job, name: str) -> Path:
        """Return where an evaluation of a job goes, under the job's own name or beside it."""
        recipe = job.recipe
        return self.out / job.task / name / EVALUATION / evaluation_name(recipe.task.name, recipe.evaluation)

    def _folder(self, job: Job) -> Path:
        return self.out / job.task / job.name


@contextmanager
def _only_errors() -> Iterator[None]:
    """Leave unsaid what every result counts (texts that are cut, say); whoever called hears as much as before."""
    log = logging.getLogger("layerbridge.training")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _store_key(job: Job) -> str:
    """Return what jobs have in common that read one feature store."""
    return f"{job.recipe.training.feature_precision} {job.recipe.encoder.model_dump_json()}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
