"""transformers' Trainer, taught what a bridge is: what to save, what to load, how to look at the dev rows."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from layerbridge.config import TrainingConfig
from layerbridge.errors import CheckpointError, ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import TENSORS, load_trained, read_tensors, save_bridge
from layerbridge.model.processor import BridgeInputs
from layerbridge.training.batches import BatchLoader, SharedBatches
from layerbridge.training.callbacks import Bar, MetricsFile
from layerbridge.training.compilation import check_compilable, compiled_llm
from layerbridge.training.dev_looks import dev_metrics
from layerbridge.training.length_groups import LengthGroups, RandomOrder
from layerbridge.training.objective import Objective, check_objective
from layerbridge.training.recomputation import check_recomputable, mark_layers, recomputed_activations
from layerbridge.training.token_rows import TokenRows, collate


class BridgeTrainer(Trainer):
    """A Trainer whose checkpoints hold what trains and nothing else, and whose dev score is the accuracy.

    Args:
        bridge: the model.
        training: steps, optimizer, schedule, lengths.
        train: rows to learn.
        dev: rows to choose the best step by, if any.
        answers: the task's possible answers; None for free text, whose dev score is the loss.
        folder: where training checkpoints and metrics.jsonl go.
        progress: show a bar.
        objective: what is minimised; by default the bridge's own loss, the answers' cross-entropy.
        stage: name of a stage before the task, whose training checkpoints go into a folder of that name.
    """

    def __init__(
        self,
        bridge: Bridge,
        *,
        training: TrainingConfig,
        train: TokenRows,
        dev: TokenRows | None,
        answers: Sequence[str] | None,
        folder: Path,
        progress: bool = True,
        objective: Objective | None = None,
        stage: str | None = None,
    ) -> None:
        check_training(training, bridge)
        self.bridge = bridge
        self.training = training
        self.train_rows = train
        self.dev = dev
        self.answers = answers
        self.objective: Objective | None = objective
        self.updates_since_log = 0
        within = folder if stage is None else folder / stage
        arguments = training_arguments(training, num_rows=len(train), folder=within, evaluates=dev is not None)
        super().__init__(
            model=_Trainee(bridge, training, objective),
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=partial(collate, processor=bridge.processor, numbered=objective is not None),
            callbacks=[MetricsFile(folder / "metrics.jsonl", stage)],
        )
        if self.args.process_index:  # dropout of their own; weights and the order of rows are drawn from elsewhere
            torch.manual_seed(training.seed + 1_000_003 * self.args.process_index)
        for callback in (ProgressCallback, PrinterCallback):  # they print every log
            self.remove_callback(callback)
        if progress:
            self.add_callback(Bar())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the recipe says; afterwards the bridge and its LLM compute as before."""
        with _training_pass(self.bridge, self.training):
            return super().train(*args, **kwargs)

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

    def get_train_dataloader(self) -> BatchLoader:
        """Return this process's passes over the rows."""
        lengths, seed = self.train_rows.source_lengths, self.training.seed
        order: LengthGroups | RandomOrder = RandomOrder(len(lengths), seed=seed)
        if self.training.group_by_length:
            order = LengthGroups(lengths, batch_size=self.training.batch_size, seed=seed)
        batches = SharedBatches(
            order,
            lengths,
            batch_size=self.training.batch_size,
            micro_batch_size=self.args.per_device_train_batch_size,
            process=self.args.process_index,
            num_processes=self.args.world_size,
        )
        return BatchLoader(
            self.train_rows,
            batches,
            collate=self.data_collator,
            num_workers=self.training.num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the passes of an update, and count it."""
        self.updates_since_log += 1
        return super().get_batch_samples(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with a column for each term of the objective beside the loss."""
        if self.objective is not None and "loss" in logs:
            logs |= self.objective.columns(self.updates_since_log, self.bridge.device)
            self.updates_since_log = 0
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return loss, and accuracy where there are answers to choose from, on the dev rows."""
        assert self.dev is not None
        metrics = dev_metrics(self.bridge, self.dev, self.answers, self.training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        if not self.training.shard_llm:  # which put everything where it belongs
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: torch.nn.Module, training: bool = True, dataloader: Any = None) -> torch.nn.Module:
        """Let processes share the gradients of what trains; frozen models are the same everywhere, or sharded."""
        if self.args.world_size == 1 or not training or isinstance(model, DistributedDataParallel):
            return model
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        # A fusion of some layers leaves biases or adapters of those above them without gradient.
        return DistributedDataParallel(model, find_unused_parameters=self.bridge.encoder.trains)

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

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what makes a checkpoint a whole one is written next, by one process


def check_training(training: TrainingConfig, bridge: Bridge | None = None) -> None:
    """Refuse what cannot be trained as asked, before anything is loaded or encoded for it.

    Args:
        training: of a recipe.
        bridge: once there is one.

    Raises:
        ConfigError: options that do not go together, passes that do not make up a batch, an LLM that cannot compute its
            activations again, or a fusion without layer weights to train.
    """
    check_compilable(training)
    divide_batch(training)
    if bridge is not None:
        check_objective(training, bridge)
        if training.gradient_checkpointing:
            check_recomputable(bridge.llm)


def divide_batch(training: TrainingConfig) -> tuple[int, int]:
    """Return the rows of a pass of one process, and the passes of an update.

    Raises:
        ConfigError: they do not make up the batch.
    """
    processes = _num_processes()
    share, rest = divmod(training.batch_size, processes)
    if rest or not share:
        raise ConfigError(
            f"training.batch_size is {training.batch_size}, and {processes} processes share each update; wanted a "
            f"batch size that {processes} divides. Set training.batch_size, or start another number of processes."
        )
    micro = training.micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"training.batch_size is {training.batch_size}, and {processes} processes with {micro} rows a pass make "
            f"{micro * processes} rows; wanted passes that make up the batch. Set training.micro_batch_size to a "
            f"number that divides {share}."
        )
    return micro, share // micro


def training_arguments(training: TrainingConfig, *, num_rows: int, folder: Path, evaluates: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a recipe's training part."""
    micro, accumulation = divide_batch(training)
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
        average_tokens_across_devices=True,  # the loss is the mean over the answer tokens of all processes' rows
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


@contextmanager
def _training_pass(bridge: Bridge, training: TrainingConfig) -> Iterator[None]:
    """Change how a bridge and its LLM compute, as the recipe asks, and change it back: other bridges share the LLM."""
    before = bridge.recompute_states, bridge.state_noise
    with ExitStack() as changed:
        if training.gradient_checkpointing:
            changed.enter_context(recomputed_activations(bridge.llm))
        if training.torch_compile:
            changed.enter_context(compiled_llm(bridge.llm))
        bridge.recompute_states, bridge.state_noise = training.gradient_checkpointing, training.state_noise
        try:
            yield
        finally:
            bridge.recompute_states, bridge.state_noise = before


class _Trainee(torch.nn.Module):
    """The bridge as the Trainer sees it: without `config`, which it would take for a transformers config and set."""

    def __init__(self, bridge: Bridge, training: TrainingConfig, objective: Objective | None = None) -> None:
        super().__init__()
        self.bridge = bridge
        self.objective: Objective | None = objective
        self.recomputes = training.gradient_checkpointing

    def train(self, mode: bool = True) -> "_Trainee":
        super().train(mode)
        if self.recomputes:
            mark_layers(self.bridge.llm, mode)
        return self

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        unlearned, rows_B = batch.pop("unlearned", None), batch.pop("row_numbers", None)
        if unlearned is None and self.objective is not None:
            num_items = batch.pop("num_items_in_batch")
            return {"loss": self.objective(self.bridge, BridgeInputs(**batch), rows_B, num_items)}
        if unlearned is None:
            return self.bridge(**batch)
        # No row is left for this process in this pass: it does the pass as the others do, and nothing of it counts.
        return {"loss": 0.0 * self.bridge(**batch | {"labels": unlearned})["loss"]}
