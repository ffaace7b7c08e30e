"""A bridge and a task -> predictions/LANG.jsonl -> results.json. Finished languages outlive a kill."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layerbridge.analysis import WEIGHTS_FILE
from layerbridge.config import EvaluationConfig, TaskConfig
from layerbridge.data.sentences import example_sentences
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.batches import in_batches
from layerbridge.evaluation.predictions import (
    Prediction,
    PredictionsHeader,
    predictions_path,
    read_predictions,
    write_predictions,
)
from layerbridge.evaluation.run_folder import Run, find_run, language_code
from layerbridge.evaluation.score import pick_answer, rescore
from layerbridge.evaluation.weights import keep_weights, measure_weights
from layerbridge.results import (
    BaseModelOrigin,
    Method,
    Provenance,
    Results,
    Versions,
    config_sha256,
    setup_sha256,
)

if TYPE_CHECKING:
    from layerbridge.data.example import Split
    from layerbridge.data.tasks import Task
    from layerbridge.model.bridge import Bridge


def predict(
    bridge: Bridge,
    task: Task,
    language: str,
    split: Split,
    config: EvaluationConfig,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[Prediction]:
    """Yield the bridge's answers to the first `config.limit` examples of a split, in the split's order.

    Batches are those of `in_batches`: of texts of like length, longest first.

    Args:
        bridge: Any object with the bridge's `score`, `generate`, `count_source_tokens` and `source_limit`. Where it has
            `answer` too and both methods are wanted, that is called instead.
        task: Whose answers are scored; free-text tasks (no answers) are only generated.
        language: Of the split; goes into the rows.
        split: Examples with gold answers.
        config: Methods, limits and what fits a batch.
        on_batch: Called with the number of examples done, after each batch.

    Raises:
        ConfigError: a free-text task and no method but `score`, or a text that does not fit the memory.
        DataError: a gold answer that is none of the task's.
    """
    methods = task_methods(task, config)
    examples = split.examples[: config.limit]
    for example in examples:
        if task.answers is not None and example.answer not in task.answers:
            raise DataError(
                f"{task.name}, {language}, example {example.id!r}: the gold answer {example.answer!r} "
                f"is none of {', '.join(task.answers)}."
            )
    lengths = bridge.count_source_tokens([example.text for example in examples]) if examples else []
    cut_before = getattr(bridge, "cut_texts", ())  # of a reader that translates: cut on the way to the LLM
    limit = bridge.source_limit(config.max_source_tokens)

    def ask(batch: list[int]) -> tuple[list[dict[str, float | None] | None], list[str | None]]:
        return _ask(bridge, task, [examples[index].text for index in batch], methods, config)

    found: dict[int, Prediction] = {}
    for batch, (log_probs, generated) in in_batches([min(length, limit) for length in lengths], config, ask):
        for index, row_log_probs, text in zip(batch, log_probs, generated, strict=True):
            found[index] = Prediction(
                id=examples[index].id,
                language=language,
                answer=examples[index].answer,
                scored=None if row_log_probs is None else pick_answer(row_log_probs),
                log_probs=row_log_probs,
                generated=text,
                source_tokens=lengths[index],
                truncated=lengths[index] > limit or examples[index].text in cut_before,
            )
        if on_batch is not None:
            on_batch(len(batch))
    for index in range(len(examples)):
        yield found[index]


def _ask(
    bridge: Bridge, task: Task, texts: list[str], methods: tuple[Method, ...], config: EvaluationConfig
) -> tuple[list[dict[str, float | None] | None], list[str | None]]:
    """Return log-probabilities and greedy texts, None where not asked for; both from one pass where that is offered."""
    limit, longest = config.max_source_tokens, config.max_new_tokens
    answers = list(task.answers or ())
    log_probs: list[dict[str, float | None] | None] = [None] * len(texts)
    generated: list[str | None] = [None] * len(texts)
    if len(methods) == 2 and hasattr(bridge, "answer"):
        log_probs_BN, written = bridge.answer(texts, answers, max_new_tokens=longest, max_source_tokens=limit)
        return _by_answer(answers, log_probs_BN.tolist()), list(written)
    if "score" in methods:
        log_probs = _by_answer(answers, bridge.score(texts, answers, max_source_tokens=limit).tolist())
    if "generate" in methods:
        # Without a budget: `texts` are a batch already, and `in_batches` divides it when memory runs out.
        written = bridge.generate(texts, max_new_tokens=longest, max_source_tokens=limit, batch_tokens=None)
        generated = list(written)
    return log_probs, generated


def _by_answer(answers: list[str], log_probs_BN: list[list[float]]) -> list[dict[str, float | None] | None]:
    finite = [[value if math.isfinite(value) else None for value in row] for row in log_probs_BN]
    return [dict(zip(answers, row, strict=True)) for row in finite]


def task_methods(task: Task, config: EvaluationConfig) -> tuple[Method, ...]:
    """Return the methods of `config` that the task allows, in one order, each once."""
    wanted = set(config.methods) - ({"score"} if task.answers is None else set())
    if not wanted:
        why = f"Task {task.name!r} is free text, which cannot be scored" if config.methods else "No method was given"
        raise ConfigError(f"{why}. Use methods: [generate].")
    return tuple(method for method in ("score", "generate") if method in wanted)


def evaluate_run(
    run_or_checkpoint: str | Path,
    *,
    task_config: TaskConfig | None = None,
    config: EvaluationConfig | None = None,
    out: Path | None = None,
    progress: bool = False,
    **load_options: Any,
) -> Results:
    """Evaluate a run's checkpoint, language by language, and write predictions and results.json.

    A language is not predicted again if its predictions file is complete and its header is the one that would
    be written now: same checkpoint, data, split, limit, methods, token limits and versions.
    results.json covers all languages in the folder that belong to this evaluation.

    Args:
        run_or_checkpoint: A run folder, its checkpoint folder, or a checkpoint on its own.
        task_config: By default the run's own task.
        config: By default the run's own `evaluation` part, or the defaults of `EvaluationConfig`.
        out: Evaluation folder; by default RUN/evaluation/TASK-SPLIT[-first-N].
        progress: Show a bar per language on stderr.
        load_options: Of `load_bridge`: device, encoder, llm, trust_remote_code.

    Raises:
        ConfigError: no such run, an unknown task or language, or a free-text task to be scored.
        DataError: data without rows, or with gold answers that are none of the task's.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    run = find_run(run_or_checkpoint)
    config = config or (run.recipe.evaluation if run.recipe else EvaluationConfig())
    task_config = task_config or run.choose_task(None)
    if not run.checkpoint.is_dir():
        raise ConfigError(f"Run {run.name!r} has no checkpoint at {run.checkpoint}. Finish its training first.")
    task = _build_task(task_config)
    task_methods(task, config)
    splits = load_splits(task, config)
    bridge = _load_bridge(run.checkpoint, **load_options)
    folder = run.evaluation_folder(task_config.name, config) if out is None else Path(out)
    return evaluate_bridge(bridge, run, task, splits, config, folder, progress=progress)


def evaluate_bridge(
    bridge: Bridge,
    run: Run,
    task: Task,
    splits: Mapping[str, Split],
    config: EvaluationConfig,
    folder: Path,
    *,
    progress: bool = False,
) -> Results:
    """Evaluate a run's bridge that is loaded already; see `evaluate_run`."""
    provenance = describe_evaluation(run, bridge, task, config)
    predict_languages(bridge, task, splits, config, provenance, folder, progress=progress)
    if bridge.fusion.mixes:
        weights = measure_weights(
            bridge,
            splits,
            config,
            run=run.name,
            seed=run.seed,
            task=task.name,
            sentences=example_sentences(splits),
        )
        keep_weights(weights, folder / WEIGHTS_FILE)
    return rescore(folder, provenance=provenance)


def load_splits(task: Task, config: EvaluationConfig) -> dict[str, Split]:
    """Load what is evaluated, before any model is: language code -> split. Languages may be given by name."""
    splits = {}
    known = task.languages_of(config.split)
    for language in known if config.languages is None else config.languages:
        split = task.load(language, config.split)
        if not split.examples:
            raise DataError(f"{task.name}, {language}, split {config.split!r} has no rows ({split.source}).")
        splits[split.examples[0].language] = split
    if not splits:
        raise ConfigError(f"No language to evaluate task {task.name!r} on. It has: {', '.join(known)}.")
    return splits


def predict_languages(
    bridge: Bridge,
    task: Task,
    splits: Mapping[str, Split],
    config: EvaluationConfig,
    provenance: Provenance,
    folder: Path,
    *,
    progress: bool = False,
) -> None:
    """Write predictions/LANG.jsonl for each language, each in one step; keep those that are as wanted."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        for language, split in splits.items():
            path = predictions_path(folder, language)
            header = PredictionsHeader(
                language=language,
                n=len(split.examples[: config.limit]),
                answers=task.answers,
                data_source=split.source,
                data_sha256=split.sha256,
                created=datetime.now(UTC).replace(microsecond=0),
                provenance=provenance,
            )
            bar = bars.add_task(language, total=header.n)
            if _is_reusable(path, header):
                bars.update(bar, completed=header.n, description=f"{language} (kept)")
                continue

            def advance(num_done: int, bar: int = bar) -> None:
                bars.advance(bar, num_done)  # type: ignore[arg-type]

            rows = list(predict(bridge, task, language, split, config, on_batch=advance))
            write_predictions(path, header, rows)


def _is_reusable(path: Path, header: PredictionsHeader) -> bool:
    if not path.is_file():
        return False
    try:
        found, _ = read_predictions(path)
    except DataError:
        return False
    return found.same_origin(header)


def describe_evaluation(run: Run, bridge: Bridge, task: Task, config: EvaluationConfig) -> Provenance:
    """Return where the numbers of this evaluation come from."""
    return Provenance(
        **shared_origin(task, config),
        run=run.name,
        fusion=bridge.config.fusion.name,
        layer=getattr(bridge.config.fusion, "layer", None),
        seed=run.seed,
        checkpoint_sha256=bridge.fingerprint(),
        config_sha256=config_sha256(bridge.config),
        setup_sha256=None if run.recipe is None else setup_sha256(run.recipe),
        bases={side: base_origin(base) for side, base in bridge.bases.items()},
        languages_seen=_languages_seen(run, bridge),
    )


def shared_origin(task: Task, config: EvaluationConfig) -> dict[str, Any]:
    """Return what every evaluation's provenance says alike, of bridges and baselines: task, limits and versions."""
    return {
        "task": task.name,
        "task_version": task.version,
        "split": config.split,
        "limit": config.limit,
        "methods": task_methods(task, config),
        "max_source_tokens": config.max_source_tokens,
        "max_new_tokens": config.max_new_tokens,
        "versions": installed_versions(),
    }


def installed_versions() -> Versions:
    """Return the versions of the packages that can change a score."""
    return Versions(**{package: version(package) for package in Versions.model_fields})


def _languages_seen(run: Run, bridge: Bridge) -> tuple[str, ...] | None:
    """Return what the run says, else what the checkpoint itself says, else None."""
    if run.languages_seen is None and bridge.trained_on is not None:
        return tuple(map(language_code, bridge.trained_on["languages"]))
    return run.languages_seen


def base_origin(base: Mapping[str, Any]) -> BaseModelOrigin:
    """Keep only the last part of a local folder's path: where it lies here says nothing of the model."""
    name = base["name"]
    if Path(name).is_absolute():
        name = f"local:{Path(name).name}"
    return BaseModelOrigin(name=name, revision=base["revision"], fingerprint=base["fingerprint"])


def _build_task(config: TaskConfig) -> Task:
    from layerbridge.data.tasks import build_task

    return build_task(config)


def _load_bridge(checkpoint: Path, **options: Any) -> Bridge:
    from layerbridge.model.checkpoint import load_bridge

    return load_bridge(checkpoint, **options)
