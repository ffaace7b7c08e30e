"""torch.compile for the LLM's forward and backward pass in training; dev looks and generation stay as they are."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from layerbridge.config import TrainingConfig
from layerbridge.errors import ConfigError


def check_compilable(training: TrainingConfig) -> None:
    """Refuse what a compiled LLM was never tried with.

    Raises:
        ConfigError: its activations are to be recomputed, or it is sharded.
    """
    for other in ("gradient_checkpointing", "shard_llm"):
        if training.torch_compile and getattr(training, other):
            raise ConfigError(
                f"training.torch_compile and training.{other} are both on, and they were not made to work together. "
                "Turn one of them off."
            )


@contextmanager
def compiled_llm(llm: PreTrainedModel) -> Iterator[None]:
    """Let torch compile an LLM's training pass, once for all batch sizes and lengths, when it is first called.

    Afterwards the LLM is as it was: bridges share it.
    """
    eager, before = llm.forward, vars(llm).get("forward")
    compiled = torch.compile(eager, dynamic=True)

    @functools.wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else eager)(*args, **kwargs)

    llm.forward = forward
    try:
        yield
    finally:
        if before is None:
            del llm.forward
        else:
            llm.forward = before
