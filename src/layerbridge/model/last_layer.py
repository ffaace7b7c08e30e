"""The LLM's last layer only at the positions whose logits are wanted.

Shapes: B batch, T LLM positions, K positions whose logits are wanted.

No later layer reads what the last one puts out, so of its positions only those count that go on to the head. All but
its keys and values act on each position alone: its queries, the output of its attention, its feed-forward part. These
are computed at the K positions, forward and backward, and are zero elsewhere. With short answers that is nearly a whole
layer spared. Which LLMs allow it is found out once, by comparing logits with and without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BY_POSITION = ("q_proj", "o_proj", "mlp", "feed_forward")
"""Names of the parts of a layer that act on each position alone and are no keys or values."""

_TRIMS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


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
    """Return whether an LLM gives the same logits with its last layer cut down: found out once, on one short row."""
    if llm not in _TRIMS:
        _TRIMS[llm] = _found_to_trim(llm)
    return _TRIMS[llm]


@contextmanager
def _trimmed(llm: PreTrainedModel, places_K: Tensor, num_positions: int) -> Iterator[None]:
    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states_BTX, *others = args
        if states_BTX.shape[1] != num_positions:
            raise ValueError(f"the last layer got {states_BTX.shape[1]} positions; wanted {num_positions}")
        return (states_BTX.index_select(1, places_K), *others)

    def spread(module: nn.Module, args: tuple[Any, ...], output_BKX: Tensor) -> Tensor:
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
    count = llm.config.get_text_config().num_hidden_layers
    stacks = [module for module in llm.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not stacks:
        return []
    found: dict[str, nn.Module] = {}
    for name, module in stacks[0][-1].named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name.rsplit(".", 1)[-1] in BY_POSITION and not inside:
            found[name] = module
    return list(found.values())


@torch.no_grad()
def _found_to_trim(llm: PreTrainedModel) -> bool:
    if not _by_position(llm):
        return False
    embedding: Any = llm.get_input_embeddings()
    device = embedding.weight.device
    embeds_1TD = embedding(torch.arange(7, device=device) % embedding.num_embeddings)[None]
    places_K = torch.tensor([2, 6], device=device)

    def read() -> Tensor:
        logits_1TV: Tensor = llm(inputs_embeds=embeds_1TD, use_cache=False).logits
        return logits_1TV[0, places_K].float()

    wanted_KV = read()
    try:
        with _trimmed(llm, places_K, 7):
            found_KV = read()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # parts that are called in another way
        return False
    tolerance = 1e-3 if llm.dtype == torch.float32 else 0.05
    return bool(torch.allclose(found_KV, wanted_KV, atol=tolerance, rtol=tolerance))
