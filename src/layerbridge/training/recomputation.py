"""Gradient checkpointing of the frozen LLM: its layers' activations are computed again in the backward pass.

(arXiv 1604.06174.) The LLM stays in eval mode, dropout off, and transformers' layers checkpoint in training mode only:
so the layers themselves are set to training, and nothing inside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from layerbridge.errors import ConfigError
from layerbridge.model.packing import recompute_context


def check_recomputable(llm: PreTrainedModel) -> None:
    """Refuse an LLM whose layers cannot compute their activations again.

    Raises:
        ConfigError: says so.
    """
    if not llm.supports_gradient_checkpointing or not _layers(llm):
        raise ConfigError(
            f"training.gradient_checkpointing: the layers of a {llm.config.model_type} LLM cannot compute their "
            "activations again. Turn it off, and lower training.micro_batch_size to save memory."
        )


@contextmanager
def recomputed_activations(llm: PreTrainedModel) -> Iterator[None]:
    """Do `recompute_activations`, and leave the LLM as it was afterwards: bridges share it.

    Raises:
        ConfigError: its layers cannot do that.
    """
    recompute_activations(llm)
    try:
        yield
    finally:
        mark_layers(llm, False)
        # By its older name in an older transformers.
        (getattr(llm, "activation_checkpointing_disable", None) or llm.gradient_checkpointing_disable)()


def recompute_activations(llm: PreTrainedModel) -> None:
    """Let an LLM's layers keep their inputs alone until the backward pass.

    `mark_layers` has to be called whenever the LLM was put into eval mode since.

    Raises:
        ConfigError: its layers cannot do that.
    """
    check_recomputable(llm)
    # By its older name in an older transformers.
    enable = getattr(llm, "activation_checkpointing_enable", None) or llm.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": recompute_context(llm)})


def mark_layers(llm: PreTrainedModel, training: bool) -> None:
    """Set the layers' own training flag, which turns recomputation on and off; what is inside them stays as it is."""
    for layer in _layers(llm):
        layer.training = training


def _layers(llm: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
