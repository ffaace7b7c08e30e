"""How encoder states are kept on disk: as the encoder puts them out, in bfloat16, or in 8 bits with a measured error.

Shapes: N tokens, L encoder layers, S tokens of one text, E encoder width, G blocks of `BLOCK` values.

In 8 bits a state is `columns_LE * scales_NLG * states_NLE`, the last of them whole numbers from -127 to 127. A column
is the RMS of one dimension of one layer over all tokens that are kept together: multilingual encoders have a few
dimensions hundreds of times larger than the others (mT5's residual stream), and a block that shares its scale with one
of these would lose all else. A scale is the largest value of a block of 64 over 127. Both are rounded to bfloat16,
which has the range of float32, before anything is divided by them: rounding them adds no error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from layerbridge.errors import ConfigError, unknown_name

BLOCK = 64
"""Values that share a scale."""
LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class Kept:
    """States of some tokens as they lie on disk.

    Args:
        states_NLE: float, or int8 with scales and columns.
        scales_NLG: bfloat16, one for each block of `BLOCK` values; the last block may be shorter.
        columns_LE: bfloat16, one for each layer and dimension.
    """

    states_NLE: Tensor
    scales_NLG: Tensor | None = None
    columns_LE: Tensor | None = None

    def __len__(self) -> int:
        return self.states_NLE.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """What the states are read as, if nothing else is asked for."""
        return self.states_NLE.dtype if self.scales_NLG is None else torch.float32

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        named = {"states_NLE": self.states_NLE, "scales_NLG": self.scales_NLG, "columns_LE": self.columns_LE}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def split(self, lengths: Sequence[int]) -> "list[Kept]":
        """Return each text's states; nothing is copied."""
        states = self.states_NLE.split(list(lengths))
        if self.scales_NLG is None:
            return [Kept(states_NLE=text) for text in states]
        scales = self.scales_NLG.split(list(lengths))
        return [
            Kept(states_NLE=text, scales_NLG=scale, columns_LE=self.columns_LE)
            for text, scale in zip(states, scales, strict=True)
        ]

    def read(self, start: int, out_nLE: Tensor) -> None:
        """Write the states of the tokens from `start` on into a float tensor, on whatever device that is."""
        part = slice(start, start + out_nLE.shape[0])
        out_nLE.copy_(self.states_NLE[part].to(out_nLE.device))
        if self.scales_NLG is not None and self.columns_LE is not None:
            _scale(out_nLE, self.scales_NLG[part], self.columns_LE)

    def layer(self, place: int, out_SE: Tensor) -> None:
        """Write one layer's states of all tokens into a float tensor; the other layers are not read."""
        out_SE.copy_(self.states_NLE[:, place].to(out_SE.device))
        if self.scales_NLG is not None and self.columns_LE is not None:
            _scale(out_SE, self.scales_NLG[:, place], self.columns_LE[place])


def _scale(values_nXE: Tensor, scales_nXG: Tensor, columns_XE: Tensor) -> None:
    """Multiply 8-bit values by their scales and columns, in place."""
    device, dtype = values_nXE.device, values_nXE.dtype
    scales_nXG = scales_nXG.to(device).to(dtype)
    whole = values_nXE.shape[-1] // BLOCK * BLOCK
    values_nXE[..., :whole].unflatten(-1, (whole // BLOCK, BLOCK)).mul_(scales_nXG[..., : whole // BLOCK, None])
    if whole < values_nXE.shape[-1]:
        values_nXE[..., whole:].mul_(scales_nXG[..., -1:])
    values_nXE.mul_(columns_XE.to(device).to(dtype))


class Precision(NamedTuple):
    """A way to keep states."""

    keep: Callable[[Tensor], Kept]
    """states_NLE, in float, to what is written."""
    bytes_a_token: Callable[[int, int, int], int]
    """(L, E, bytes of a value of the encoder's) -> bytes of one token."""
    bytes_a_shard: Callable[[int, int], int]
    """(L, E) -> bytes of a shard beside its tokens."""


def _as_it_is(states_NLE: Tensor) -> Kept:
    return Kept(states_NLE=states_NLE)


def _bfloat16(states_NLE: Tensor) -> Kept:
    return Kept(states_NLE=states_NLE.bfloat16())


def _int8(states_NLE: Tensor) -> Kept:
    num_tokens, num_layers, width = states_NLE.shape
    whole, num_blocks = width // BLOCK * BLOCK, -(-width // BLOCK)
    kept_NLE = torch.empty(states_NLE.shape, dtype=torch.int8)
    scales_NLG = torch.empty((num_tokens, num_layers, num_blocks), dtype=torch.bfloat16)
    columns_LE = torch.empty((num_layers, width), dtype=torch.bfloat16)
    for place in range(num_layers):  # one layer at a time: a float32 copy of all would not fit beside the states
        values_NE = states_NLE[:, place].to(torch.float32, copy=True)
        norm_E = torch.linalg.vector_norm(values_NE, dim=0, dtype=torch.float64)  # float32 squares could overflow
        column_E = norm_E.div_(max(1, num_tokens) ** 0.5).bfloat16()
        columns_LE[place] = column_E.masked_fill_(column_E == 0, 1.0)
        values_NE.div_(columns_LE[place].float())
        parts = [values_NE[:, :whole].unflatten(-1, (whole // BLOCK, BLOCK)), values_NE[:, None, whole:]]
        largest_NG = torch.cat([part.abs().amax(-1) for part in parts if part.numel()], dim=-1)
        scales_NLG[:, place] = (largest_NG / LARGEST).bfloat16()
        divisors_NG = scales_NLG[:, place].float()
        divisors_NG.masked_fill_(divisors_NG == 0, 1.0)
        parts[0].div_(divisors_NG[:, : whole // BLOCK, None])
        if whole < width:
            parts[1].div_(divisors_NG[:, -1:, None])
        kept_NLE[:, place] = values_NE.round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return Kept(states_NLE=kept_NLE, scales_NLG=scales_NLG, columns_LE=columns_LE)


PRECISIONS: dict[str, Precision] = {
    "encoder": Precision(
        keep=_as_it_is,
        bytes_a_token=lambda layers, width, itemsize: layers * width * itemsize,
        bytes_a_shard=lambda layers, width: 0,
    ),
    "bfloat16": Precision(
        keep=_bfloat16,
        bytes_a_token=lambda layers, width, itemsize: layers * width * 2,
        bytes_a_shard=lambda layers, width: 0,
    ),
    "int8": Precision(
        keep=_int8,
        bytes_a_token=lambda layers, width, itemsize: layers * (width + 2 * -(-width // BLOCK)),
        bytes_a_shard=lambda layers, width: layers * width * 2,
    ),
}
"""`training.feature_precision` -> how states are kept."""


def find_precision(name: str) -> Precision:
    """Return a way to keep states by its name.

    Raises:
        ConfigError: there is none of this name; says which there are.
    """
    if name not in PRECISIONS:
        raise ConfigError(unknown_name("feature precision", name, PRECISIONS))
    return PRECISIONS[name]


class KeptError(NamedTuple):
    """What keeping states cost: ||x - x'|| / ||x|| over all tokens, with x the encoder's states and x' those read."""

    overall: float
    """Over all layers together."""
    worst_layer: float
    """The largest of any one layer."""


def measure_error(states_NLE: Tensor, kept: Kept) -> KeptError:
    """Return the relative RMS error of kept states. Not a number, or infinite, where a state is."""
    squares_2L = torch.zeros((2, states_NLE.shape[1]), dtype=torch.float64)
    read_NE = torch.empty((states_NLE.shape[0], states_NLE.shape[2]), dtype=torch.float64)
    for place in range(states_NLE.shape[1]):
        kept.layer(place, read_NE)
        wanted_NE = states_NLE[:, place].double()
        squares_2L[1, place] = wanted_NE.square().sum()
        squares_2L[0, place] = read_NE.sub_(wanted_NE).square_().sum()
    overall = squares_2L[0].sum() / squares_2L[1].sum().clamp(min=torch.finfo(torch.float64).tiny)
    by_layer_L = squares_2L[0] / squares_2L[1].clamp(min=torch.finfo(torch.float64).tiny)
    return KeptError(float(overall.sqrt()), float(by_layer_L.max().sqrt()))
