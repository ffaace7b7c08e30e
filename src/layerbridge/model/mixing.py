"""The two operations that every fusion is made of, without ever stacking the layers.

Shapes: B batch, L encoder layers, S source tokens, E encoder width.

`layer_scores` is one dot product a token and layer, `weighted_sum` one running sum over the layers. Both accumulate in
float32 (float64 for float64 states), whatever the states' own dtype, and save for the backward pass only references to
the states they were given: no (tokens, L, E) copy is made. Their backward passes are written out because autograd would
keep an upcast copy of every layer.

On a GPU, `kernels.py` reads all layers in one go. What is written here does the same anywhere, and the kernels are
tested against it; `_kernels_for` says which of the two runs.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType
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


RMS_EPSILON = 1e-6


def inverse_rms(layers: Sequence[Tensor], dtype: torch.dtype, epsilon: float = RMS_EPSILON) -> Tensor:
    """Return 1 / RMS of every layer's state of every token, (B, S, L).

    Multiplying scores and weights by it mixes RMS-normalised layers without writing a normalised copy of any.
    """
    differentiable = torch.is_grad_enabled() and any(layer.requires_grad for layer in layers)
    if not differentiable and (kernels := _kernels_for(layers, dtype)):
        squares = _per_token(kernels.squares(layers, dtype), layers)
    else:  # a norm writes no square of the states, which costs more than its sum
        norms = [torch.linalg.vector_norm(layer.to(dtype), dim=-1) for layer in layers]
        squares = torch.stack(norms, dim=-1).square()
    return torch.rsqrt(squares / layers[0].shape[-1] + epsilon)


def _kernels_for(layers: Sequence[Tensor], dtype: torch.dtype) -> ModuleType | None:
    """Return `kernels.py` where it can mix these states by a vector or weights of `dtype`, None for the PyTorch form.

    It can on an NVIDIA GPU from Ampere on, with Triton and the C compiler that Triton calls, if the layers are
    contiguous and of one kind. Under `torch.compile` it is not asked: that makes kernels from the PyTorch form itself.
    """
    first = layers[0]
    if not first.is_cuda or torch.compiler.is_compiling() or not _triton_works_on(first.device):
        return None
    from layerbridge.model import kernels  # imports Triton

    fit = (
        first.dtype in kernels.DTYPES
        and dtype in kernels.DTYPES
        and first.shape[-1] <= kernels.MAX_WIDTH
        and all(
            layer.is_contiguous()
            and layer.dtype == first.dtype
            and layer.shape == first.shape
            and layer.device == first.device
            for layer in layers
        )
    )
    return kernels if fit else None


@cache
def _triton_works_on(device: torch.device) -> bool:
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
        warnings.warn(
            "Triton finds no C compiler, so layers are mixed by PyTorch, which is slower. Install gcc, or set CC.",
            stacklevel=2,
        )
        return False
    return True


def _per_token(found_TX: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Return what a kernel found for T tokens in the layers' own leading axes, (B, S, X)."""
    return found_TX.view(*layers[0].shape[:-1], found_TX.shape[-1])


class _LayerScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, direction_E: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(direction_E, *layers)
        if kernels := _kernels_for(layers, direction_E.dtype):
            return _per_token(kernels.dots(layers, direction_E.contiguous()), layers)
        return torch.stack([layer.to(direction_E.dtype) @ direction_E for layer in layers], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSL: Tensor) -> tuple[Tensor | None, ...]:
        direction_E, *layers = ctx.saved_tensors
        grad_E = None
        if ctx.needs_input_grad[0]:
            if kernels := _kernels_for(layers, direction_E.dtype):
                grad_E = kernels.mix_all_tokens(layers, grad_BSL.flatten(0, -2).contiguous())
            else:
                grad_LT = grad_BSL.flatten(0, -2).T.contiguous()  # BLAS is twice as slow on a strided vector
                grad_1E = direction_E.new_zeros(1, len(direction_E))
                for layer, grad_T in zip(layers, grad_LT, strict=True):
                    grad_1E.addmm_(grad_T[None], layer.to(direction_E.dtype).flatten(0, -2))
                grad_E = grad_1E[0]
        grads = (
            (grad_BSL[..., index, None] * direction_E).to(layer.dtype) if needed else None
            for index, (layer, needed) in enumerate(zip(layers, ctx.needs_input_grad[1:], strict=True))
        )
        return (grad_E, *grads)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_BSL: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weights_BSL, *layers)
        if kernels := _kernels_for(layers, weights_BSL.dtype):
            return _per_token(kernels.mix(layers, weights_BSL.flatten(0, -2).contiguous()), layers)
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
            if kernels := _kernels_for(layers, weights_BSL.dtype):
                grad_BSL = _per_token(kernels.dots_by_token(layers, grad_BSE.flatten(0, -2).contiguous()), layers)
            else:
                product_BSE = torch.empty_like(grad_BSE)  # one for all layers: fresh ones cost more than the sums
                products = (torch.mul(grad_BSE, layer, out=product_BSE).sum(-1) for layer in layers)
                grad_BSL = torch.stack(list(products), dim=-1)
        grads = (
            (weights_BSL[..., index, None] * grad_BSE).to(layer.dtype) if needed else None
            for index, (layer, needed) in enumerate(zip(layers, ctx.needs_input_grad[1:], strict=True))
        )
        return (grad_BSL, *grads)
