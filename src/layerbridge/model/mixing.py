"""The two operations that every fusion is made of, without ever stacking the layers.

Shapes: B batch, L encoder layers, S source tokens, E encoder width.

`layer_scores` is one dot product a token and layer, `weighted_sum` one running sum over the layers. Both accumulate in
float32 (float64 for float64 states), whatever the states' own dtype, and save for the backward pass only references to
the states they were given: no (tokens, L, E) copy is made. Their backward passes are written out because autograd would
keep an upcast copy of every layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def layer_scores(layers: Sequence[Tensor], direction_E: Tensor) -> Tensor:
    """Return scores_BSL, the dot product of every layer's state of a token with `direction_E`.

    Args:
        layers: L tensors (B, S, E).
        direction_E: one vector, float32 or float64.
    """
    return _LayerScores.apply(direction_E, *layers)


def weighted_sum(layers: Sequence[Tensor], weights_BSL: Tensor) -> Tensor:
    """Return the (B, S, E) sum over l of `weights_BSL[..., l] * layers[l]`, in the dtype of the weights."""
    return _WeightedSum.apply(weights_BSL, *layers)


def inverse_rms(layers: Sequence[Tensor], dtype: torch.dtype, epsilon: float = 1e-6) -> Tensor:
    """Return 1 / RMS of every layer's state of every token, (B, S, L).

    Multiplying scores and weights by it mixes RMS-normalised layers without writing a normalised copy of any.
    """
    squares = [layer.to(dtype).square().mean(-1) for layer in layers]
    return torch.rsqrt(torch.stack(squares, dim=-1) + epsilon)


class _LayerScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, direction_E: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(direction_E, *layers)
        return torch.stack([layer.to(direction_E.dtype) @ direction_E for layer in layers], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSL: Tensor) -> tuple[Tensor | None, ...]:
        direction_E, *layers = ctx.saved_tensors
        grad_E = None
        if ctx.needs_input_grad[0]:
            grad_E = torch.zeros_like(direction_E)
            for index, layer in enumerate(layers):
                flat_TE = layer.to(direction_E.dtype).flatten(0, 1)
                grad_E.addmv_(flat_TE.T, grad_BSL[..., index].flatten())
        grads = (
            (grad_BSL[..., index, None] * direction_E).to(layer.dtype) if needed else None
            for index, (layer, needed) in enumerate(zip(layers, ctx.needs_input_grad[1:], strict=True))
        )
        return (grad_E, *grads)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_BSL: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weights_BSL, *layers)
        total_BSE = torch.zeros(layers[0].shape, dtype=weights_BSL.dtype, device=weights_BSL.device)
        for index, layer in enumerate(layers):
            total_BSE.addcmul_(weights_BSL[..., index, None], layer.to(weights_BSL.dtype))
        return total_BSE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSE: Tensor) -> tuple[Tensor | None, ...]:
        weights_BSL, *layers = ctx.saved_tensors
        grad_BSL = None
        if ctx.needs_input_grad[0]:
            product_BSE = torch.empty_like(grad_BSE)  # one buffer for all layers: fresh ones cost more than the sums
            grad_BSL = torch.stack([torch.mul(grad_BSE, layer, out=product_BSE).sum(-1) for layer in layers], dim=-1)
        grads = (
            (weights_BSL[..., index, None] * grad_BSE).to(layer.dtype) if needed else None
            for index, (layer, needed) in enumerate(zip(layers, ctx.needs_input_grad[1:], strict=True))
        )
        return (grad_BSL, *grads)
