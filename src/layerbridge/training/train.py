"""Train one recipe: data -> bridge -> run folder. Reads top to bottom as the method."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from layerbridge.config import Recipe, TrainingConfig
from layerbridge.data.example import Split
from layerbridge.data.tasks import build_task
from layerbridge.data.tasks.task import Task
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import TENSORS, load_trained, read_tensors, save_bridge
from layerbridge.training.distillation_stage import describe_stage, distil_before, stage_texts
from layerbridge.training.features import describe_features, keep_features, open_store
from layerbridge.training.objective import build_objective, check_rows
from layerbridge.training.run import RECORD, open_run, read_record, write_json
from layerbridge.training.sharding import build_sharded, check_shardable
from layerbridge.training.token_rows import TokenRows
from layerbridge.training.trainer import BridgeTrainer, check_training, last_complete_checkpoint

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    bridge: Bridge | None = None,
    cache: str | Path | None = None,
    cache_bytes: int | None = None,
) -> Bridge:
    """Train a bridge and write its run folder; a run that was cut off goes on where its last checkpoint is.

    Args:
        recipe: all of it.
        folder: the run folder.
        overwrite: begin anew in a folder that holds a run.
        progress: show a bar.
        bridge: an untrained bridge built from this recipe, if there is one already.
        cache: folder where the encoder's states of all texts are kept, so that each text is encoded once for all
            epochs, seeds and fusions; None: every text is encoded whenever it is read.
        cache_bytes: how large that folder may get; None: as large as it needs.

    Returns:
        The bridge at the selected step.

    Raises:
        ConfigError: the folder holds another run, there are no dev rows to select by, states are to be kept of an
            encoder that trains, or options of `training` that cannot be followed.
        DataError: rows that cannot be used, or that a loss of `training` cannot be worked out on.
    """
    folder = Path(folder)
    started = time.monotonic()
    check_training(recipe.training)
    _check_precision(recipe.training, cache, bridge)
    task = build_task(recipe.task)
    rows, dev = task.load_training(recipe.task, seed=recipe.training.seed)
    if recipe.training.select == "best" and not dev.examples:
        raise ConfigError(
            f"training.select is 'best', and task {task.name} has no dev rows in the training languages. "
            "Set task.dev_rows to set some training rows aside, or training.select=last."
        )
    check_rows(recipe.training, rows.examples)
    texts = stage_texts(recipe.training, rows)
    processes = PartialState(cpu=not torch.cuda.is_available())
    if recipe.training.shard_llm:
        check_shardable(recipe.bridge, bridge)
        bridge = build_sharded(recipe.bridge, seed=recipe.training.seed, device=processes.device)
    bridge = bridge or Bridge.build(recipe.bridge, seed=recipe.training.seed)
    check_training(recipe.training, bridge)
    bridge.trained_on = describe_training(task, rows, recipe)
    if cache is not None:
        bridge.features = open_store(bridge, Path(cache), recipe.training.feature_precision)
    train_rows = TokenRows(rows.examples, bridge.processor, recipe.training)
    dev_rows = TokenRows(dev.examples, bridge.processor, recipe.training) if dev.examples else None
    record = describe_rows(bridge, rows, dev, train_rows, recipe)
    stage_rows = None
    if texts is not None:
        stage_rows = TokenRows(texts.examples, bridge.processor, recipe.training, answered=False)
        if texts is not rows:  # of which it was said
            _warn_of_cut(stage_rows.num_cut_texts, stage_rows, "texts to distil on", stage_rows.source_limit, "encoder")
        record |= {"stage": describe_stage(stage_rows, texts, recipe.training), "stage_sha256": texts.sha256}
    if processes.is_main_process:
        open_run(folder, recipe, overwrite=overwrite)
        _check_same_data(folder, record)
        write_json(folder / RECORD, {"status": "training", **record})
    processes.wait_for_everyone()

    parts = [part for part in (train_rows, dev_rows, stage_rows) if part is not None]
    if cache is not None and bridge.features is not None:
        shown = progress and processes.is_local_main_process
        keep_features(bridge.features, parts, max_bytes=cache_bytes, progress=shown)
    objective = build_objective(bridge, train_rows, recipe.training)
    passes = bridge.encoder.num_passes
    begin = last_complete_checkpoint(folder)
    resumed = begin is not None
    if stage_rows is not None and begin is None:
        resumed = distil_before(bridge, stage_rows, recipe.training, folder, progress=progress)
    trainer = BridgeTrainer(
        bridge,
        training=recipe.training,
        train=train_rows,
        dev=dev_rows,
        answers=task.answers,
        folder=folder,
        progress=progress,
        objective=objective,
    )
    trainer.train(resume_from_checkpoint=str(begin) if begin else None)
    best = _select(trainer, recipe)

    if trainer.args.should_save:
        save_bridge(bridge, folder / "checkpoint")
        seconds = round(time.monotonic() - started, 1)
        finished = {
            "steps": trainer.state.global_step,
            "seconds": seconds,
            "resumed": resumed,
            "features": describe_features(bridge.features, parts, bridge.encoder.num_passes - passes),
            **best,
        }
        if objective is not None:
            teacher, agreement = objective.describe()
            finished |= {"self_distillation": teacher, "noise_agreement": agreement}
        write_json(folder / RECORD, {"status": "finished", **record, **finished})
    return bridge


def _check_precision(training: TrainingConfig, cache: str | Path | None, bridge: Bridge | None) -> None:
    """Refuse a precision of kept states where none are kept."""
    if training.feature_precision != "encoder" and cache is None and (bridge is None or bridge.features is None):
        raise ConfigError(
            f"training.feature_precision is {training.feature_precision!r}, and this run keeps no encoder states that "
            "it could be the precision of. Add --cache DIR to keep them, or drop training.feature_precision."
        )


def _check_same_data(folder: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with a run on other rows than it began with."""
    begun = read_record(folder)
    for part in ("train", "dev", "stage"):
        before, now = begun.get(f"{part}_sha256"), record.get(f"{part}_sha256")
        if before is not None and before != now:
            raise DataError(
                f"Run {folder} was begun on {part} rows with sha256 {before[:16]}, and they now have {str(now)[:16]}: "
                "the files changed. Put the old ones back, or train anew with --overwrite."
            )


def describe_training(task: Task, rows: Split, recipe: Recipe) -> dict[str, Any]:
    """Return what a checkpoint keeps of its training."""
    return {
        "task": task.name,
        "task_version": task.version,
        "encoder_prompt": task.encoder_prompt,
        "answers": list(task.answers) if task.answers is not None else None,
        "languages": sorted({example.language for example in rows.examples}),
        "seed": recipe.training.seed,
    }


def describe_rows(bridge: Bridge, rows: Split, dev: Split, tokens: TokenRows, recipe: Recipe) -> dict[str, Any]:
    """Return what the run record says of its rows; texts over the length limit are counted and said."""
    _warn_of_cut(tokens.num_cut_texts, tokens, "training texts", tokens.source_limit, "encoder")
    _warn_of_cut(tokens.num_cut_answers, tokens, "training answers", recipe.training.max_answer_tokens, "LLM")
    return {
        "seed": recipe.training.seed,
        "languages_seen": sorted({example.language for example in rows.examples}),
        "train_rows": len(rows.examples),
        "train_source": rows.source,
        "train_sha256": rows.sha256,
        "dev_rows": len(dev.examples),
        "dev_source": dev.source,
        "dev_sha256": dev.sha256,
        "truncated_train_texts": tokens.num_cut_texts,
        "truncated_train_answers": tokens.num_cut_answers,
        "source_token_limit": tokens.source_limit,
        "trained_parameters": sum(p.numel() for p in bridge.trained_parameters().values()),
    }


def _warn_of_cut(count: int, rows: TokenRows, what: str, limit: int, whose: str) -> None:
    if count:
        log.warning("%d of %d %s are longer than %d %s tokens and are cut there.", count, len(rows), what, limit, whose)


def _select(trainer: BridgeTrainer, recipe: Recipe) -> dict[str, Any]:
    """Put the best step's tensors into the bridge, if the recipe selects by dev; return which step it is."""
    state = trainer.state
    if recipe.training.select == "last":
        return {"selected_step": state.global_step}
    if state.best_global_step and state.best_global_step != state.global_step:
        best = Path(str(trainer.args.output_dir)) / f"checkpoint-{state.best_global_step}"
        load_trained(trainer.bridge, read_tensors(best / TENSORS), where=str(best))
    return {"selected_step": state.best_global_step, "dev_selection": state.best_metric}
