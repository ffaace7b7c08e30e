"""What a step minimises where that is more, or other, than the answers' cross-entropy.

Shapes: A answer tokens (end tokens included) of a batch, B rows, L encoder layers, V LLM vocabulary.

All terms are divided by the answer tokens of the whole update, as the answers' loss is: so micro-batches and processes
add up to the gradient of the whole batch. The agreement of the mix, which is of a text, counts once an answer token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F  # noqa: N812

from layerbridge.config import TrainingConfig
from layerbridge.data.example import Example
from layerbridge.model.bridge import Bridge
from layerbridge.model.processor import BridgeInputs
from layerbridge.model.splice import IGNORED
from layerbridge.training.noise_agreement import (
    check_mixes,
    check_texts,
    measure,
    mix_divergence,
    noted_mixes,
    wanted_weights,
)
from layerbridge.training.self_distillation import Teacher, distillation_loss
from layerbridge.training.token_rows import TokenRows

ANSWER, DISTILLATION, AGREEMENT = "answer_loss", "self_distillation_loss", "noise_agreement_loss"
"""Columns of metrics.jsonl: the terms, unweighted."""


class Objective:
    """A weighted sum of losses, and what each of them was since the last log.

    Args:
        answer_weight: of the answers' cross-entropy; 0: the answers are not learned.
        teacher: of self-distillation, if there is one.
        distillation_weight: of it.
        agreement_L: of the layers, for noise agreement, if the mix is drawn toward it.
        agreement_temperature: of the softmax over it.
        agreement_weight: of that loss.
    """

    def __init__(
        self,
        *,
        answer_weight: float = 1.0,
        teacher: Teacher | None = None,
        distillation_weight: float = 1.0,
        agreement_L: Tensor | None = None,
        agreement_temperature: float = 1.0,
        agreement_weight: float = 1.0,
    ) -> None:
        self.teacher = teacher
        self.agreement_L = agreement_L
        self.wanted_L = None if agreement_L is None else wanted_weights(agreement_L, agreement_temperature)
        known = {
            ANSWER: answer_weight,
            DISTILLATION: 0.0 if teacher is None else distillation_weight,
            AGREEMENT: 0.0 if agreement_L is None else agreement_weight,
        }
        self.weights = {name: weight for name, weight in known.items() if weight}
        self._sums: dict[str, Tensor] = {}

    def __call__(self, bridge: Bridge, inputs: BridgeInputs, rows_B: Tensor, num_items: Tensor | int) -> Tensor:
        """Return the loss of a pass.

        Args:
            bridge: the model.
            inputs: with labels.
            rows_B: which of the training rows these are.
            num_items: answer tokens of the whole update.
        """
        with noted_mixes(bridge.fusion) as mixes:
            logits_AV, targets_A = bridge.answer_logits(inputs)
        logits_AV = logits_AV.float()
        terms: dict[str, Tensor] = {}
        if ANSWER in self.weights:
            terms[ANSWER] = F.cross_entropy(logits_AV, targets_A, reduction="sum") / num_items
        if DISTILLATION in self.weights:
            assert self.teacher is not None
            kept = self.teacher.of_rows(rows_B.tolist(), logits_AV.device)
            terms[DISTILLATION] = distillation_loss(logits_AV, kept, self.teacher.temperature) / num_items
        if AGREEMENT in self.weights:
            assert inputs.labels is not None
            assert self.wanted_L is not None
            ((states, mixed),) = mixes
            divergence_B = mix_divergence(states, mixed.weights_NL, self.wanted_L)
            terms[AGREEMENT] = (inputs.labels != IGNORED).to(divergence_B).sum(dim=1) @ divergence_B / num_items
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.detach()
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def columns(self, num_updates: int, device: torch.device) -> dict[str, float]:
        """Return each term's mean over the updates since this was last called; all processes must call it.

        Args:
            num_updates: since then.
            device: that processes exchange numbers on.
        """
        noted = [float(self._sums.get(name, 0.0)) for name in self.weights]  # a process may have had fillers alone
        sums = torch.tensor(noted, dtype=torch.float64, device=device)
        self._sums = {}
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        return dict(zip(self.weights, (sums / num_updates).tolist(), strict=True))

    def describe(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return what the run record says of the teacher and of the layers' agreement; None where there is none."""
        teacher = None if self.teacher is None else self.teacher.describe()
        if self.agreement_L is None or self.wanted_L is None:
            return teacher, None
        return teacher, {"agreement": self.agreement_L.tolist(), "wanted": self.wanted_L.tolist()}


def check_objective(training: TrainingConfig, bridge: Bridge) -> None:
    """Refuse losses that a bridge cannot be trained with.

    Raises:
        ConfigError: noise agreement, and a fusion that learns no layer weights.
    """
    if training.noise_agreement is not None:
        check_mixes(bridge.fusion, bridge.config.fusion.name)


def check_rows(training: TrainingConfig, examples: Sequence[Example]) -> None:
    """Refuse training rows that a loss cannot be worked out on, before a model is loaded or asked.

    Raises:
        DataError: fewer than two English texts for noise agreement.
    """
    if training.noise_agreement is not None:
        check_texts(examples)


def build_objective(bridge: Bridge, rows: TokenRows, training: TrainingConfig) -> Objective | None:
    """Return what a run minimises; None: the answers' cross-entropy alone.

    Reads the rows with the frozen models, so it is to be called before anything trains: then a run that goes on finds
    what it began with.

    Raises:
        ConfigError: see `check_objective`.
        DataError: rows that the LLM cannot read as text, or fewer than two English ones for noise agreement.
    """
    check_objective(training, bridge)
    distillation, agreement = training.self_distillation, training.noise_agreement
    options: dict[str, Any] = {}
    if distillation is not None and distillation.weight:
        options["distillation_weight"] = distillation.weight
        options["teacher"] = Teacher.read(
            bridge, rows, temperature=distillation.temperature, max_text_tokens=training.max_source_tokens
        )
    if agreement is not None:
        options["agreement_weight"] = agreement.weight
        options["agreement_temperature"] = agreement.temperature
        options["agreement_L"] = measure(
            bridge, rows.examples, agreement, seed=training.seed, limit=training.max_source_tokens
        )
    return Objective(**options) if options else None
