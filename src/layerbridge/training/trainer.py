"""transformers' Trainer, taught what a bridge is: what to save, what to load, how to look at the dev rows."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from layerbridge.atomic import replace_text
from layerbridge.config import TrainingConfig
from layerbridge.data.example import Example
from layerbridge.errors import CheckpointError, ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import TENSORS, load_trained, read_tensors, save_bridge
from layerbridge.model.processor import BridgeInputs
from layerbridge.model.splice import IGNORED


class BridgeTrainer(Trainer):
    """A Trainer whose checkpoints hold what trains and nothing else, and whose dev score is the accuracy.

    Args:
        bridge: the model.
        training: steps, optimizer, schedule, lengths.
        train: rows to learn.
        dev: rows to choose the best step by; may be empty.
        answers: the task's possible answers; None for free text, whose dev score is the loss.
        folder: where training checkpoints and metrics.jsonl go.
    """

    def __init__(
        self,
        bridge: Bridge,
        *,
        training: TrainingConfig,
        train: Sequence[Example],
        dev: Sequence[Example],
        answers: Sequence[str] | None,
        folder: Path,
        progress: bool = True,
    ) -> None:
        self.bridge = bridge
        self.training = training
        self.dev = list(dev)
        self.answers = answers
        arguments = training_arguments(training, num_rows=len(train), folder=folder, evaluates=bool(dev))
        super().__init__(
            model=_Trainee(bridge),
            args=arguments,
            train_dataset=_Rows(train),
            eval_dataset=_Rows(dev) if dev else None,
            data_collator=collator(bridge, training),
            callbacks=[_MetricsFile(folder / "metrics.jsonl")],
        )
        for callback in (ProgressCallback, PrinterCallback):  # they print every log
            self.remove_callback(callback)
        if progress:
            self.add_callback(_Bar())

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Give the fusion a learning rate of its own, where the recipe has one."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        rate = self.training.fusion_learning_rate
        if is_new and rate is not None:
            of_fusion = {id(parameter) for parameter in self.bridge.fusion.parameters()}
            for group in list(optimizer.param_groups):
                parameters = group["params"]
                group["params"] = [p for p in parameters if id(p) not in of_fusion]
                split = [p for p in parameters if id(p) in of_fusion]
                if split:
                    optimizer.add_param_group({**group, "params": split, "lr": rate})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        if not self.training.group_by_length:
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset
        assert isinstance(rows, _Rows)
        lengths = self.bridge.count_source_tokens([example.text for example in rows.examples])
        return LengthGroups(
            [min(length, self.training.max_source_tokens) for length in lengths],
            batch_size=self.training.batch_size,
            seed=self.training.seed,
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return loss, and accuracy where there are answers to choose from, on the dev rows."""
        metrics = dev_metrics(self.bridge, self.dev, self.answers, self.training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        save_bridge(self.bridge, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_trained(self.bridge, read_tensors(Path(resume_from_checkpoint) / TENSORS), where=resume_from_checkpoint)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CheckpointError(
                f"Could not write the training checkpoint of step {self.state.global_step}: {error}. Earlier ones are "
                "untouched; free some space, and the same command goes on from the last one that is complete."
            ) from error


def training_arguments(training: TrainingConfig, *, num_rows: int, folder: Path, evaluates: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a recipe's training part."""
    processes = _num_processes()
    micro = training.micro_batch_size or max(1, training.batch_size // processes)
    accumulation = training.batch_size // (micro * processes)
    if accumulation * micro * processes != training.batch_size:
        raise ConfigError(
            f"training.batch_size is {training.batch_size}, and {processes} processes with {micro} rows a pass make "
            f"{micro * processes} rows; wanted a batch size that this divides. Set training.micro_batch_size."
        )
    steps = num_steps(training, num_rows)
    every = min(training.eval_every or max(1, -(-steps // 8)), steps)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=round(training.warmup_fraction * steps),
        adam_beta1=training.adam_betas[0],
        adam_beta2=training.adam_betas[1],
        adam_epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        data_seed=training.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=training.keep_checkpoints,
        metric_for_best_model="selection" if evaluates else None,
        greater_is_better=True if evaluates else None,
        logging_steps=max(1, every // 4),
        remove_unused_columns=False,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs take torchrun; DataParallel would change the batch
    return arguments


def num_steps(training: TrainingConfig, num_rows: int) -> int:
    """Return how many optimizer updates the run has."""
    if training.max_steps is not None:
        return training.max_steps
    return max(1, round(training.epochs * -(-num_rows // training.batch_size)))


def collator(bridge: Bridge, training: TrainingConfig) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Return the function that turns examples into one batch of tensors."""

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        return bridge.processor(
            [example.text for example in examples],
            answers=[example.answer for example in examples],
            max_source_tokens=training.max_source_tokens,
            max_answer_tokens=training.max_answer_tokens,
        ).tensors()

    return collate


@torch.no_grad()
def dev_metrics(
    bridge: Bridge, dev: Sequence[Example], answers: Sequence[str] | None, training: TrainingConfig
) -> dict[str, float]:
    """Return `eval_loss`, `eval_accuracy` (of tasks with answers) and `eval_selection`, what steps are chosen by.

    Selection is the accuracy, or minus the loss for free text; the higher the better, and of equals the earlier.
    """
    bridge.eval()
    batch_size = max(32, training.micro_batch_size or training.batch_size)
    collate = collator(bridge, training)
    total, num_tokens, correct = 0.0, 0, 0
    for start in range(0, len(dev), batch_size):
        rows = list(dev[start : start + batch_size])
        batch = collate(rows)
        tokens = int((batch["labels"] != IGNORED).sum())
        total += bridge.loss(BridgeInputs(**batch).to(bridge.device)).item() * tokens
        num_tokens += tokens
        if answers is not None:
            scores_BN = bridge.score(
                [row.text for row in rows], list(answers), max_source_tokens=training.max_source_tokens
            )
            chosen = [answers[int(index)] for index in scores_BN.argmax(dim=1)]
            correct += sum(row.answer == answer for row, answer in zip(rows, chosen, strict=True))
    loss = total / num_tokens
    if answers is None:
        return {"eval_loss": loss, "eval_selection": -loss}
    accuracy = correct / len(dev)
    return {"eval_loss": loss, "eval_accuracy": accuracy, "eval_selection": accuracy}


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest training checkpoint that was written to its end, or None.

    The Trainer writes a checkpoint's trainer_state.json last, so one that a kill cut off has none, or half of one.
    """
    found = [path for path in (folder / "checkpoints").glob("checkpoint-*") if _is_complete(path)]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return f"checkpoint-{state['global_step']}" == checkpoint.name


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


class LengthGroups(torch.utils.data.Sampler[int]):
    """All rows once an epoch, in batches of like length; the order of the batches is random.

    Fifty batches' rows at a time are drawn at random and sorted by length, so a batch still mixes what the epoch mixes.

    Args:
        lengths: of each row.
        batch_size: rows of one optimizer update.
        seed: with the epoch's number it gives the order.
    """

    BATCHES_A_POOL = 50

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.BATCHES_A_POOL * self.batch_size
        ordered: list[int] = []
        for start in range(0, len(order), pool):
            ordered += sorted(order[start : start + pool], key=lambda row: -self.lengths[row])
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        for index in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[index]
        yield from rest  # last, so that every other batch is a whole one


class _Trainee(torch.nn.Module):
    """The bridge as the Trainer sees it: without `config`, which it would take for a transformers config and set."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return self.bridge(**batch)


class _Rows(torch.utils.data.Dataset[Example]):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class _Bar(ProgressCallback):
    """The Trainer's progress bar, with the latest loss and dev score at its end instead of a line a log."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        shown = {"loss": "loss", "eval_accuracy": "dev accuracy", "eval_loss": "dev loss"}
        self.latest |= {name: f"{logs[key]:.3f}" for key, name in shown.items() if key in (logs or {})}
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.set_postfix(self.latest, refresh=False)


class _MetricsFile(TrainerCallback):
    """Append every log to metrics.jsonl; on resume, drop rows of steps that will be done again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= state.global_step]
            replace_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut off by a kill
        return float("inf")
