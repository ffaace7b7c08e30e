"""States that lie on disk: read a few tokens at a time, whenever they are asked for, and never held.

Shapes: B batch, S columns of the padded batch, N real tokens of the batch, L encoder layers, E encoder width; n tokens
that are read at once.

Scores and weighted sums read the memory map once in the forward pass and once more in the backward pass, through a
scratch buffer of fixed size, or through none where the map has the wanted dtype on the CPU. What autograd keeps is a
reference and (N, L) weights: training needs no more memory for more layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerbridge.model.mixing import RMS_EPSILON
from layerbridge.model.precision import Kept
from layerbridge.model.states import States

SCRATCH_BYTES = {"cpu": 2**22, "cuda": 2**26}
"""Size of a scratch buffer by kind of device: what stays in a core's cache, and what keeps a GPU busy."""


class Scratch:
    """One buffer for each dtype and device, lent to one reader at a time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def lend(self, num_layers: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a buffer (n, L, E) with as many tokens as the fixed size has room for, one at least."""
        limit = SCRATCH_BYTES.get(device.type, max(SCRATCH_BYTES.values())) // dtype.itemsize
        num_tokens = max(1, limit // (num_layers * width))
        buffer = self._buffers.get((dtype, device))
        if buffer is None or buffer.numel() < num_tokens * num_layers * width:
            with torch.inference_mode(False):  # a buffer made in inference could not be written to in training
                buffer = torch.empty(max(limit, num_layers * width), dtype=dtype, device=device)
            self._buffers[dtype, device] = buffer
        return buffer[: num_tokens * num_layers * width].view(num_tokens, num_layers, width)


class StoredStates(States):
    """States of texts that are all on disk; tokens in the order of the batch.

    Args:
        texts: of each row of the batch.
        rows_N: see `States`; on the device where results are wanted.
        shape: (B, S).
        scratch: shared by all batches of a store.
    """

    def __init__(self, texts: Sequence[Kept], *, rows_N: Tensor, shape: tuple[int, int], scratch: Scratch) -> None:
        _, num_layers, width = texts[0].states_NLE.shape
        super().__init__(rows_N=rows_N, shape=shape, num_layers=num_layers, width=width, dtype=texts[0].dtype)
        self.texts = texts
        self.scratch = scratch

    def scores(self, direction_E: Tensor) -> Tensor:
        """Return (N, L), see `States`."""
        found_NL: Tensor = _Scores.apply(direction_E, self)
        return found_NL

    def weighted_sum(self, weights_NL: Tensor) -> Tensor:
        """Return (N, E), see `States`."""
        total_NE: Tensor = _WeightedSum.apply(weights_NL, self)
        return total_NE

    def inverse_rms(self, dtype: torch.dtype) -> Tensor:
        """Return (N, L), see `States`."""
        norms_NL = torch.empty((len(self.rows_N), self.num_layers), dtype=dtype, device=self.device)
        for part, states_nLE in self.read(dtype):
            torch.linalg.vector_norm(states_nLE, dim=-1, out=norms_NL[part])
        return torch.rsqrt(norms_NL.square_() / self.width + RMS_EPSILON)

    def layer(self, place: int) -> Tensor:
        """Return (N, E), see `States`."""
        states_NE = torch.empty((len(self.rows_N), self.width), dtype=self.dtype, device=self.device)
        for part, text in zip(states_NE.split([len(text) for text in self.texts]), self.texts, strict=True):
            text.layer(place, part)
        return states_NE

    def read(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield all states in order, as (place in N, states_nLE); what was yielded is gone when the next comes."""
        end = 0
        if self.device.type == "cpu" and self.dtype == dtype and self.texts[0].scales_NLG is None:
            for text in self.texts:  # straight from the map
                begin, end = end, end + len(text)
                yield slice(begin, end), text.states_NLE
            return
        scratch_nLE = self.scratch.lend(self.num_layers, self.width, dtype, self.device)
        room = scratch_nLE.shape[0]
        filled = 0
        for text in self.texts:
            read = 0
            while read < len(text):
                count = min(room - filled, len(text) - read)
                text.read(read, scratch_nLE[filled : filled + count])
                read, filled = read + count, filled + count
                if filled == room:
                    begin, end = end, end + filled
                    yield slice(begin, end), scratch_nLE
                    filled = 0
        if filled:
            yield slice(end, end + filled), scratch_nLE[:filled]


class MixedStates(States):
    """States of a batch of which some texts are on disk and the others are not; first the ones, then the others.

    Args:
        parts: all states, in the order of `rows_N`.
        rows_N: see `States`; in the whole batch, whatever the parts' own say.
        shape: (B, S).
    """

    def __init__(self, parts: Sequence[States], *, rows_N: Tensor, shape: tuple[int, int]) -> None:
        first = parts[0]
        dtype = first.dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)
        super().__init__(
            rows_N=rows_N,
            shape=shape,
            num_layers=first.num_layers,
            width=first.width,
            dtype=dtype,
        )
        self.parts = parts

    def scores(self, direction_E: Tensor) -> Tensor:
        """Return (N, L), see `States`."""
        return torch.cat([part.scores(direction_E) for part in self.parts])

    def weighted_sum(self, weights_NL: Tensor) -> Tensor:
        """Return (N, E), see `States`."""
        weights = weights_NL.split([len(part.rows_N) for part in self.parts])
        return torch.cat([part.weighted_sum(own) for part, own in zip(self.parts, weights, strict=True)])

    def layer_sum(self, weights_L: Tensor, *, normalized: bool = False) -> Tensor:
        """Return (N, E), see `States`."""
        return torch.cat([part.layer_sum(weights_L, normalized=normalized) for part in self.parts])

    def inverse_rms(self, dtype: torch.dtype) -> Tensor:
        """Return (N, L), see `States`."""
        return torch.cat([part.inverse_rms(dtype) for part in self.parts])

    def layer(self, place: int) -> Tensor:
        """Return (N, E), see `States`."""
        return torch.cat([part.layer(place).to(self.dtype) for part in self.parts])


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, direction_E: Tensor, states: StoredStates) -> Tensor:
        ctx.states, ctx.dtype = states, direction_E.dtype
        scores_NL = direction_E.new_empty((len(states.rows_N), states.num_layers))
        for part, states_nLE in states.read(direction_E.dtype):
            torch.mv(states_nLE.flatten(0, 1), direction_E, out=scores_NL[part].view(-1))
        return scores_NL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NL: Tensor) -> tuple[Tensor, None]:
        grad_1E = grad_NL.new_zeros((1, ctx.states.width))
        for part, states_nLE in ctx.states.read(ctx.dtype):
            # As a matrix product: a matrix-vector product with a transpose is slower, and as a loop ten times slower.
            grad_1E.addmm_(grad_NL[part].reshape(1, -1), states_nLE.flatten(0, 1))
        return grad_1E[0], None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_NL: Tensor, states: StoredStates) -> Tensor:
        ctx.states, ctx.dtype = states, weights_NL.dtype
        total_NE = weights_NL.new_empty((len(states.rows_N), states.width))
        for part, states_nLE in states.read(weights_NL.dtype):
            torch.bmm(weights_NL[part].unsqueeze(1), states_nLE, out=total_NE[part].unsqueeze(1))
        return total_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, None]:
        grad_NL = grad_NE.new_empty((grad_NE.shape[0], ctx.states.num_layers))
        grad_NE = grad_NE.contiguous()
        for part, states_nLE in ctx.states.read(ctx.dtype):
            # Row times matrix: matrix times column takes torch's slow path, ten times slower.
            row_n1E = grad_NE[part].unsqueeze(1)
            torch.bmm(row_n1E, states_nLE.transpose(1, 2), out=grad_NL[part].unsqueeze(1))
        return grad_NL, None
