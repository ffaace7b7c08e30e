"""The optimiser of a model held in bf16: it owns an fp32 master copy.

On CPUs with AMX a pure bf16 model trains several times faster than fp32; the master copy
keeps updates that are smaller than a bf16 step.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class MasterOptimiser:
    """Updates fp32 copies; warm-up, then cosine decay of the rate to a tenth.

    Matrices of the layers go to Muon (Jordan et al. 2024: momentum made orthogonal; needs
    torch 2.9), embeddings and vectors to AdamW. Muon's updates are scaled to AdamW's RMS, so that one
    rate serves both.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: float,
        steps: int,
        warmup_steps: int,
        embedding_factor: float = 1.0,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
    ) -> None:
        """Copies the parameters.

        Args:
            model: any dtype; updated in place.
            rate: peak learning rate.
            steps: updates until the rate has decayed.
            warmup_steps: updates until the rate has risen.
            embedding_factor: the embeddings' rate as a share of `rate`.
            weight_decay: of matrices and embeddings; vectors have none.
            max_norm: gradients are clipped to this total L2 norm.
        """
        self.rate, self.steps, self.warmup_steps, self.max_norm = rate, steps, warmup_steps, max_norm
        self.parameters = list(model.parameters())
        self.masters = [p.detach().float().clone() for p in self.parameters]
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        kinds: dict[str, list[torch.Tensor]] = {"embedding": [], "matrix": [], "vector": []}
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            kind = "matrix" if parameter.ndim == 2 else "vector"
            kinds["embedding" if id(parameter) in tables else kind].append(master)
        groups = [
            {"params": kinds["embedding"], "weight_decay": weight_decay, "factor": embedding_factor},
            {"params": kinds["vector"], "weight_decay": 0.0, "factor": 1.0},
        ]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8),
            torch.optim.Muon(kinds["matrix"], lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        ]
        self.step_count = 0

    def step(self) -> float:
        """One update from the model's gradients, which it clears; returns their norm."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_norm)
        warm = min(1.0, (self.step_count + 1) / max(1, self.warmup_steps))
        progress = min(1.0, self.step_count / self.steps)
        rate = self.rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            optimiser.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
        self.step_count += 1
        return float(norm)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return masters and the optimisers' own state, by name, for `load_tensors`."""
        found = {f"master.{at}": master for at, master in enumerate(self.masters)}
        for which, optimiser in enumerate(self.optimisers):
            found |= _state_tensors(optimiser, f"state.{which}.")
        return found

    def load_tensors(self, tensors: dict[str, torch.Tensor], step_count: int) -> None:
        """Put masters, optimisers and the model where `tensors` was read off after `step_count` updates."""
        with torch.no_grad():
            for at, master in enumerate(self.masters):
                master.copy_(tensors[f"master.{at}"])
            torch._foreach_copy_(self.parameters, self.masters)
        for which, optimiser in enumerate(self.optimisers):
            _load_state(optimiser, tensors, f"state.{which}.")
        self.step_count = step_count


class PlainState:
    """Tensors of one of torch's own optimisers and what it trains, by name; the rate is the training's own affair."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser
        self.parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return parameters and state, for `load_tensors`."""
        found = {f"parameter.{at}": parameter.detach() for at, parameter in enumerate(self.parameters)}
        return found | _state_tensors(self.optimiser, "state.")

    def load_tensors(self, tensors: dict[str, torch.Tensor], step_count: int) -> None:
        """Put parameters and state where `tensors` was read off; the state itself counts the steps."""
        with torch.no_grad():
            for at, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{at}"])
        _load_state(self.optimiser, tensors, "state.")


def _state_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{at}.{key}": torch.as_tensor(value)
        for at, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def _load_state(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    found = optimiser.state_dict()
    found["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            at, key = name.removeprefix(prefix).split(".", 1)
            found["state"].setdefault(int(at), {})[key] = tensor
    optimiser.load_state_dict(found)
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            # Fused kernels go through memory: a moment has to lie there as its parameter does.
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
