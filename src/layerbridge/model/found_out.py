"""Finding out once what a model allows, by trying it and comparing.

A fast form that some architectures do not take is tried on a few tokens and compared with the plain form. What came out
is remembered for the model as it is: its device, its dtype and its attention.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerbridge.errors import is_out_of_memory

_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()


def found_out(what: str, model: PreTrainedModel, try_it: Callable[[], bool]) -> bool:
    """Return what `try_it` found for this model the first time; a model that raises does not allow it.

    Args:
        what: name of what is tried.
        model: a frozen model.
        try_it: compares; runs without gradients.

    Raises:
        RuntimeError: memory ran out, which says nothing of the model.
    """
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    key = (what, model.device, model.dtype, attention)
    known = _FOUND.setdefault(model, {})
    if key not in known:
        try:
            with torch.no_grad():
                known[key] = try_it()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            known[key] = False  # an architecture that does it in its own way
    return known[key]


def same(found: Tensor, wanted: Tensor) -> bool:
    """Return whether rows of numbers (..., X) are the same up to rounding in their dtype.

    Rows are compared as a whole: among a vocabulary's many logits some near zero always differ by more than their size.
    """
    if found.shape != wanted.shape:
        return False
    tolerance = 1e-4 if found.dtype in (torch.float32, torch.float64) else 0.05
    found, wanted = found.double(), wanted.double()
    return bool(((found - wanted).norm(dim=-1) <= tolerance * wanted.norm(dim=-1)).all())


def stack_of(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """Return a model's layers: its first list of `num_layers` modules, or an empty one."""
    found = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers)
    return next(found, nn.ModuleList())
