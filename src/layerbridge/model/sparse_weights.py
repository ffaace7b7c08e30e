"""Logits of layers -> weights that sum to one: softmax, and two relatives of it that give most layers none at all.

Shapes: L layers, X all axes before them.

sparsemax is the Euclidean projection of the logits onto the simplex (Martins and Astudillo 2016, arXiv 1602.02068);
entmax15 lies between it and softmax (Peters, Niculae and Martins 2019, arXiv 1905.05702, alpha = 1.5). With
x = (alpha - 1) logits both are `p = max(x - tau, 0) ^ (1 / (alpha - 1))`, and sorting x finds tau exactly. Both
gradients are `s g - s (s . g) / sum(s)` with `s = p ^ (2 - alpha)`: a layer without weight gets none, so a layer comes
back only when others lose.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerbridge.errors import ConfigError, unknown_name


def softmax(logits_XL: Tensor) -> Tensor:
    """Return weights that are all above zero."""
    return torch.softmax(logits_XL, dim=-1)


def sparsemax(logits_XL: Tensor) -> Tensor:
    """Return the point of the simplex that is nearest to the logits; float32 or float64."""
    weights_XL: Tensor = _Sparsemax.apply(logits_XL)
    return weights_XL


def entmax15(logits_XL: Tensor) -> Tensor:
    """Return the weights of largest `p . logits + 4/3 sum(p - p^1.5)` on the simplex; float32 or float64."""
    weights_XL: Tensor = _Entmax15.apply(logits_XL)
    return weights_XL


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"softmax": softmax, "entmax15": entmax15, "sparsemax": sparsemax}
"""Name in a recipe -> function."""


def weights_named(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function from logits to weights that a fusion's `weights` names.

    Raises:
        ConfigError: unknown name.
    """
    if name not in WEIGHTS:
        raise ConfigError(unknown_name("weights", name, WEIGHTS))
    return WEIGHTS[name]


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_XL: Tensor) -> Tensor:
        x_XL = _below_zero(logits_XL)
        largest_XL, numbers_L = _sorted(x_XL)
        sums_XL = largest_XL.cumsum(-1)
        tau_XL = (sums_XL - 1) / numbers_L
        weights_XL = (x_XL - _of_support(tau_XL, largest_XL)).clamp_(min=0)
        ctx.save_for_backward(weights_XL)
        return weights_XL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XL: Tensor) -> Tensor:
        (weights_XL,) = ctx.saved_tensors
        return _grad((weights_XL > 0).to(weights_XL.dtype), grad_XL)


class _Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_XL: Tensor) -> Tensor:
        x_XL = _below_zero(logits_XL / 2)
        largest_XL, numbers_L = _sorted(x_XL)
        # Over the k largest, sum((x - tau)^2) = 1 where tau = mean - sqrt((1 - k variance) / k).
        means_XL = largest_XL.cumsum(-1) / numbers_L
        spreads_XL = largest_XL.square().cumsum(-1) - numbers_L * means_XL.square()
        tau_XL = means_XL - ((1 - spreads_XL) / numbers_L).clamp_(min=0).sqrt_()
        weights_XL = (x_XL - _of_support(tau_XL, largest_XL)).clamp_(min=0).square_()
        ctx.save_for_backward(weights_XL)
        return weights_XL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XL: Tensor) -> Tensor:
        (weights_XL,) = ctx.saved_tensors
        return _grad(weights_XL.sqrt(), grad_XL)


def _below_zero(x_XL: Tensor) -> Tensor:
    """Return x less its largest, from -1 to 0.

    tau is then never below -1, so what lies deeper has no weight either way, and must not cost the sums their digits.
    """
    return (x_XL - x_XL.amax(-1, keepdim=True)).clamp_(min=-1)


def _sorted(x_XL: Tensor) -> tuple[Tensor, Tensor]:
    """Return x from the largest down, and 1..L."""
    numbers_L = torch.arange(1, x_XL.shape[-1] + 1, dtype=x_XL.dtype, device=x_XL.device)
    return x_XL.sort(dim=-1, descending=True).values, numbers_L


def _of_support(tau_XL: Tensor, largest_XL: Tensor) -> Tensor:
    """Return the right one of L thresholds, of the k largest for each k: that of the last k still above its own."""
    last_X1 = (largest_XL > tau_XL).sum(-1, keepdim=True).clamp_(min=1) - 1
    return tau_XL.gather(-1, last_X1)


def _grad(slopes_XL: Tensor, grad_XL: Tensor) -> Tensor:
    common_X1 = (slopes_XL * grad_XL).sum(-1, keepdim=True) / slopes_XL.sum(-1, keepdim=True)
    return slopes_XL * (grad_XL - common_X1)
