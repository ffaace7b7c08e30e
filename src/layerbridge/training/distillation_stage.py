"""The stage before the task: self-distillation alone, where the answer would begin. No answer is read in it.

(MT-LLM, arXiv 2406.12739.) A stage is a training of its own, with the run's batches, learning rates and schedule over
the stage's steps, and checkpoints of its own in the run folder, so that a run that was cut off in it goes on in it.
"""

from pathlib import Path
from typing import Any

from layerbridge.config import TrainingConfig
from layerbridge.data.example import Split
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import TENSORS, load_trained, read_tensors
from layerbridge.training.objective import Objective
from layerbridge.training.self_distillation import Teacher, read_texts
from layerbridge.training.token_rows import TokenRows
from layerbridge.training.trainer import BridgeTrainer, last_complete_checkpoint, num_steps

STAGE = "self_distillation"
"""Name of the stage in metrics.jsonl and run.json, and of the folder of its checkpoints in the run folder."""


def stage_texts(training: TrainingConfig, rows: Split) -> Split | None:
    """Return the texts of the stage: the recipe's file, or the training rows; None: there is no stage.

    Raises:
        DataError: a file that cannot be read.
    """
    distillation = training.self_distillation
    if distillation is None or not distillation.epochs_before:
        return None
    return rows if distillation.texts is None else read_texts(distillation.texts)


def stage_training(training: TrainingConfig) -> TrainingConfig:
    """Return the training part of the stage."""
    assert training.self_distillation is not None
    return training.model_copy(update={"epochs": training.self_distillation.epochs_before, "max_steps": None})


def describe_stage(rows: TokenRows, texts: Split, training: TrainingConfig) -> dict[str, Any]:
    """Return what the run record says of the stage."""
    return {
        "rows": len(rows),
        "source": texts.source,
        "steps": num_steps(stage_training(training), len(rows)),
        "truncated_texts": rows.num_cut_texts,
    }


def distil_before(bridge: Bridge, rows: TokenRows, training: TrainingConfig, folder: Path, *, progress: bool) -> bool:
    """Do the stage, or what is left of it; afterwards the bridge has learned from no answer.

    Args:
        bridge: untrained.
        rows: texts without answers.
        training: of the recipe.
        folder: the run folder.
        progress: show a bar.

    Returns:
        Whether it went on from a checkpoint of the stage, perhaps its last.
    """
    distillation, stage = training.self_distillation, stage_training(training)
    assert distillation is not None
    begin = last_complete_checkpoint(folder / STAGE)
    if begin is not None and begin.name == f"checkpoint-{num_steps(stage, len(rows))}":
        load_trained(bridge, read_tensors(begin / TENSORS), where=str(begin))
        return True
    teacher = Teacher.read(
        bridge, rows, temperature=distillation.temperature, max_text_tokens=training.max_source_tokens
    )
    trainer = BridgeTrainer(
        bridge,
        training=stage,
        train=rows,
        dev=None,
        answers=None,
        folder=folder,
        progress=progress,
        objective=Objective(answer_weight=0.0, teacher=teacher),
        stage=STAGE,
    )
    trainer.train(resume_from_checkpoint=str(begin) if begin else None)
    return begin is not None
