"""The operations of `mixing.py` as Triton kernels, which read every layer's states where the encoder left them.

Shapes: T tokens, L encoder layers, E encoder width; P programs.

Two kernels do all. `_dot` takes a program a token and finds one number a layer: against the direction that is the
scores, against the gradient of a weighted sum the gradient of its weights, against the state itself its square. `_mix`
takes a program a token and sums over the layers; with a share of several tokens a program it sums over them as well,
and that is the gradient of the direction.

All are bound by memory: a state is read once, for one multiplication. So the layers are found through a table of their
addresses and neither stacked nor copied; loads are 16 bytes a thread, those of several layers under way at once; and
the vector that meets all layers of a token stays in registers. Sums are float32, and their order depends on the shapes
alone: there are no atomics, and two runs agree to the last bit.

`mixing.py` decides when they are used and alone imports this file, which imports Triton.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 8192
"""Widest vector that one program holds in registers."""
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What kernels read and write, and Triton's names for it."""
_LAYERS_AT_ONCE = 4  # with the two below: 16 KB of loads under way in each of 8 programs a multiprocessor
_VALUES_A_THREAD = 16  # of one state: two 16-byte loads of bfloat16
_MIX_BLOCK = 2048  # wider states are mixed piece by piece; 8192 float32 values in one piece spill registers
_SMALLEST_BLOCK = 128
_PROGRAMS = 528  # share the tokens of a sum over tokens: four for each multiprocessor of an H100 or H200


def dots(layers: Sequence[Tensor], direction_E: Tensor) -> Tensor:
    """Return (T, L): the dot product of every state with `direction_E`, in its dtype.

    Args:
        layers: L contiguous tensors (..., E) of one shape, dtype and device; their leading axes make T.
        direction_E: contiguous, on the same device.
    """
    return _launch_dot(layers, direction_E, stride=0, dtype=direction_E.dtype)


def dots_by_token(layers: Sequence[Tensor], vectors_TE: Tensor) -> Tensor:
    """Return (T, L): the dot product of every state with its token's vector, in the vectors' dtype; see `dots`."""
    return _launch_dot(layers, vectors_TE, stride=vectors_TE.shape[-1], dtype=vectors_TE.dtype)


def squares(layers: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return (T, L): the sum of squares of every state, in `dtype`; see `dots`."""
    return _launch_dot(layers, None, stride=0, dtype=dtype)


def mix(layers: Sequence[Tensor], weights_TL: Tensor) -> Tensor:
    """Return (T, E): the sum over the layers of weight times state, in the weights' dtype.

    Args:
        layers: see `dots`.
        weights_TL: contiguous, on the same device.
    """
    tokens, width = _size(layers)
    out_TE = torch.empty(tokens, width, dtype=weights_TL.dtype, device=weights_TL.device)
    return _launch_mix(layers, weights_TL, out_TE, share=1)


def mix_all_tokens(layers: Sequence[Tensor], weights_TL: Tensor) -> Tensor:
    """Return (E,): the sum over tokens and layers of weight times state, in the weights' dtype; see `mix`."""
    tokens, width = _size(layers)
    share = max(2, triton.cdiv(tokens, _PROGRAMS))
    partial_PE = torch.empty(triton.cdiv(tokens, share), width, dtype=torch.float32, device=weights_TL.device)
    return _launch_mix(layers, weights_TL, partial_PE, share=share).sum(0).to(weights_TL.dtype)


def _launch_dot(layers: Sequence[Tensor], vectors: Tensor | None, *, stride: int, dtype: torch.dtype) -> Tensor:
    tokens, width = _size(layers)
    out_TL = torch.empty(tokens, len(layers), dtype=dtype, device=layers[0].device)
    assert vectors is None or vectors.numel() == (tokens if stride else 1) * width, "kernels do not check their bounds"
    if tokens:
        options = _options(layers, triton.next_power_of_2(width))
        with torch.cuda.device_of(layers[0]):
            _dot[(tokens,)](
                _addresses(layers),
                out_TL if vectors is None else vectors,
                stride,
                out_TL,
                width,
                SQUARE=vectors is None,
                **options,
            )
    return out_TL


def _launch_mix(layers: Sequence[Tensor], weights_TL: Tensor, out: Tensor, *, share: int) -> Tensor:
    tokens, width = _size(layers)
    assert weights_TL.shape == (tokens, len(layers)), "kernels do not check their bounds"
    if tokens:
        options = _options(layers, min(_MIX_BLOCK, triton.next_power_of_2(width)))
        grid = (len(out), triton.cdiv(width, options["BLOCK_E"]))
        with torch.cuda.device_of(layers[0]):
            _mix[grid](_addresses(layers), weights_TL, out, tokens, share, width, ONE=share == 1, **options)
    return out


def _size(layers: Sequence[Tensor]) -> tuple[int, int]:
    """Return T and E."""
    width = layers[0].shape[-1]
    return layers[0].numel() // width, width


def _addresses(layers: Sequence[Tensor]) -> Tensor:
    """Return the layers' addresses on their device, without waiting for it. The caller keeps the layers alive."""
    device = layers[0].device
    table_L = torch.tensor([layer.data_ptr() for layer in layers], dtype=torch.int64, pin_memory=device.type == "cuda")
    return table_L.to(device, non_blocking=True)


def _options(layers: Sequence[Tensor], block: int) -> dict[str, Any]:
    """Return what kernels are compiled for; `block` is how much of a state one program takes at once."""
    block = max(_SMALLEST_BLOCK, block)
    return {
        "LAYERS": len(layers),
        "STATE": DTYPES[layers[0].dtype],
        "ALIGNED": all(layer.data_ptr() % 16 == 0 for layer in layers),
        "BLOCK_L": min(_LAYERS_AT_ONCE, triton.next_power_of_2(len(layers))),
        "BLOCK_E": block,
        "num_warps": min(16, max(1, block // (32 * _VALUES_A_THREAD))),
    }


@triton.jit
def _states(
    table: tl.tensor,
    first: tl.constexpr,
    token: tl.tensor,
    e: tl.tensor,
    width: tl.tensor,
    LAYERS: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_L: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_L, BLOCK_E): one token's states in the layers from `first` on, zero past the last and past E."""
    layer = first + tl.arange(0, BLOCK_L)
    start = tl.load(table + layer, mask=layer < LAYERS, other=0).to(tl.pointer_type(STATE))
    if ALIGNED:
        start = tl.multiple_of(start, [16])
    at = start[:, None] + (token * width + e)[None, :]
    return tl.load(at, mask=(layer < LAYERS)[:, None] & (e < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _dot(
    table: tl.tensor,
    vectors: tl.tensor,
    stride: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    SQUARE: tl.constexpr,
    LAYERS: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """One token: the dot products of all its states with one vector, or their squares."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    if not SQUARE:
        vector = tl.load(vectors + token * stride + e, mask=e < width, other=0.0).to(tl.float32)
    for first in tl.static_range(0, LAYERS, BLOCK_L):
        states = _states(table, first, token, e, width, LAYERS, STATE, ALIGNED, BLOCK_L)
        found = tl.sum(states * states if SQUARE else states * vector[None, :], axis=1)
        layer = first + tl.arange(0, BLOCK_L)
        tl.store(out + token * LAYERS + layer, found, mask=layer < LAYERS)


@triton.jit(do_not_specialize=["tokens", "share"])
def _mix(
    table: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    share: tl.tensor,
    width: tl.tensor,
    ONE: tl.constexpr,
    LAYERS: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """A piece of the weighted sum over the layers: of one token, or of all tokens of a share, added up."""
    program = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_E], tl.float32)
    first_token = program * share
    last_token = first_token + 1 if ONE else tl.minimum(first_token + share, tokens)
    for token in range(first_token, last_token):
        for first in tl.static_range(0, LAYERS, BLOCK_L):
            layer = first + tl.arange(0, BLOCK_L)
            weight = tl.load(weights + token * LAYERS + layer, mask=layer < LAYERS, other=0.0).to(tl.float32)
            states = _states(table, first, token, e, width, LAYERS, STATE, ALIGNED, BLOCK_L)
            total += tl.sum(states * weight[:, None], axis=0)
    tl.store(out + program * width + e, total, mask=e < width)
