"""The LLM's last layer only at the positions whose logits are wanted.

Shapes: B batch, T LLM positions, K positions whose logits are wanted.

No later layer reads what the last one puts out, so of its positions only those count that go on to the head. All but
its keys and values act on each position alone: its queries, the output of its attention, its feed-forward part. These
are computed at the K positions, forward and backward, and are zero elsewhere. With short answers that is nearly a whole
layer spared. Which LLMs allow it is found out once, by comparing logits with and without.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerbridge.model.found_out import found_out, same, stack_of

BY_POSITION = ("q_proj", "o_proj", "mlp", "feed_forward")
"""Names of the parts of a layer that act on each position alone and are no keys or values."""


@contextmanager
def last_layer_at(llm: PreTrainedModel, places_K: Tensor, num_positions: int) -> Iterator[None]:
    """Let an LLM's last layer compute nothing but keys and values at other positions than `places_K`.

    Without effect on LLMs that do not allow it, that are compiled, or whose layers are computed again in the backward
    pass, which happens when this is over.

    Args:
        llm: to be called once inside.
        places_K: positions whose logits are wanted, the same for all rows.
        num_positions: T, of that call.
    """
    recomputes = getattr(llm, "is_activation_checkpointing", None)
    if recomputes is None:  # an older transformers
        recomputes = llm.is_gradient_checkpointing
    if recomputes or "forward" in vars(llm) or not trims(llm):
        yield
        return
    with _trimmed(llm, places_K, num_positions):
        yield


def trims(llm: PreTrainedModel) -> bool:
    """Return whether an LLM gives the same logits with its last layer cut down."""
    return found_out("last layer at places", llm, lambda: _found_to_trim(llm))


@contextmanager
def _trimmed(llm: PreTrainedModel, places_K: Tensor, num_positions: int) -> Iterator[None]:
    thread = threading.get_ident()  # another may be generating with the same LLM

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if threading.get_ident() != thread:
            return args
        states_BTX, *others = args
        if states_BTX.shape[1] != num_positions:
            raise ValueError(f"the last layer got {states_BTX.shape[1]} positions; wanted {num_positions}")
        return (states_BTX.index_select(1, places_K), *others)

    def spread(module: nn.Module, args: tuple[Any, ...], output_BKX: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return output_BKX
        batch, _, width = output_BKX.shape
        return output_BKX.new_zeros((batch, num_positions, width)).index_copy(1, places_K, output_BKX)

    hooks: list[Any] = []
    for module in _by_position(llm):
        hooks += [module.register_forward_pre_hook(pick), module.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _by_position(llm: PreTrainedModel) -> list[nn.Module]:
    stack = stack_of(llm, llm.config.get_text_config().num_hidden_layers)
    found: dict[str, nn.Module] = {}
    for name, module in stack[-1].named_modules() if len(stack) else ():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name.rsplit(".", 1)[-1] in BY_POSITION and not inside:
            found[name] = module
    return list(found.values())


def _found_to_trim(llm: PreTrainedModel) -> bool:
    if not _by_position(llm):
        return False
    embedding: Any = llm.get_input_embeddings()
    device = embedding.weight.device
    embeds_1TD = embedding(torch.arange(7, device=device) % embedding.num_embeddings)[None]
    places_K = torch.tensor([2, 6], device=device)

    def read() -> Tensor:
        logits_1TV: Tensor = llm(inputs_embeds=embeds_1TD, use_cache=False).logits
        return logits_1TV[0, places_K]

    wanted_KV = read()
    with _trimmed(llm, places_K, 7):
        return same(read(), wanted_KV)
