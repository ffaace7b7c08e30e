"""The encoder's states as fusions read them: of real tokens only, layer by layer, never stacked.

Shapes: B batch, S columns of the padded batch, N real tokens of the batch, L encoder layers, E encoder width;
b, s, n rows, columns and real tokens of one chunk.

A fusion asks for dot products with every state, for weighted sums over the layers, for RMS, or for one layer. Where the
states are (in memory as the encoder put them out, or on disk) is for the kinds of `States` to know.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerbridge.model.mixing import inverse_rms, layer_scores, weighted_sum


class States(ABC):
    """L states of each of a batch's N real tokens. Tokens may come in any order; `rows_N` says which is which.

    Args:
        rows_N: of each token, its place `row * S + column` in the padded batch.
        shape: (B, S).
        num_layers: L.
        width: E.
        dtype: of the states.
    """

    def __init__(
        self, *, rows_N: Tensor, shape: tuple[int, int], num_layers: int, width: int, dtype: torch.dtype
    ) -> None:
        self.rows_N = rows_N
        self.shape = shape
        self.num_layers = num_layers
        self.width = width
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where results are."""
        return self.rows_N.device

    @abstractmethod
    def scores(self, direction_E: Tensor) -> Tensor:
        """Return (N, L): the dot product of every state with `direction_E`, in its dtype; differentiable in it."""

    @abstractmethod
    def weighted_sum(self, weights_NL: Tensor) -> Tensor:
        """Return (N, E): the sum over layers of weight times state, in the weights' dtype; differentiable in them."""

    @abstractmethod
    def inverse_rms(self, dtype: torch.dtype) -> Tensor:
        """Return (N, L): 1 / RMS of every state."""

    @abstractmethod
    def layer(self, place: int) -> Tensor:
        """Return (N, E): one layer's states; the other layers are not read."""

    def layer_sum(self, weights_L: Tensor, *, normalized: bool = False) -> Tensor:
        """Return (N, E): the sum over layers with the same weights for all tokens; differentiable in the weights.

        Args:
            weights_L: one a layer.
            normalized: divide every state by its RMS first.
        """
        weights_NL = weights_L.expand(len(self.rows_N), self.num_layers)
        return self.weighted_sum(weights_NL * self.inverse_rms(weights_L.dtype) if normalized else weights_NL)

    def pad(self, packed_NX: Tensor) -> Tensor:
        """Return per-token values as the padded batch (B, S, X), zero at padding."""
        batch, columns = self.shape
        flat = packed_NX.new_zeros((batch * columns, packed_NX.shape[-1])).index_copy(0, self.rows_N, packed_NX)
        return flat.view(batch, columns, -1)


class RealTokens:
    """Which cells of a padded chunk of rows are tokens, and where these stand in the whole batch.

    Args:
        mask_bs: true at real tokens.
        rows_b: which rows of the batch these are; all, in order, by default.
        columns: S of the batch; s by default.
    """

    def __init__(self, mask_bs: Tensor, rows_b: Tensor | None = None, columns: int | None = None) -> None:
        b, s = mask_bs.shape
        if rows_b is None:
            rows_b = torch.arange(b, device=mask_bs.device)
        self.shape = (b, s)
        self.places_n = mask_bs.flatten().nonzero().squeeze(1)
        """In the flattened chunk."""
        self.rows_n = (rows_b[self.places_n // s] * (columns or s)) + self.places_n % s
        """In the flattened batch."""
        self.is_all = len(self.places_n) == b * s

    def __len__(self) -> int:
        return len(self.places_n)

    def pick(self, values_bsX: Tensor) -> Tensor:
        """Return the tokens' values (n, X)."""
        flat_tX = values_bsX.flatten(0, 1)
        return flat_tX if self.is_all else flat_tX.index_select(0, self.places_n)

    def spread(self, packed_nX: Tensor) -> Tensor:
        """Return the tokens' values in place (b, s, X), zeros elsewhere."""
        b, s = self.shape
        if not self.is_all:
            zeros = packed_nX.new_zeros((b * s, packed_nX.shape[-1]))
            packed_nX = zeros.index_copy(0, self.places_n, packed_nX)
        return packed_nX.reshape(b, s, -1)


class Chunk(NamedTuple):
    """Rows of like length as the encoder put them out."""

    layers: Sequence[Tensor]
    """L tensors (b, s, E)."""
    tokens: RealTokens


class LiveStates(States):
    """States in memory, in one or more chunks. Gradients reach them if they want any."""

    def __init__(self, chunks: Sequence[Chunk], shape: tuple[int, int]) -> None:
        first = chunks[0].layers
        super().__init__(
            rows_N=torch.cat([chunk.tokens.rows_n for chunk in chunks]),
            shape=shape,
            num_layers=len(first),
            width=first[0].shape[-1] if first else 0,
            dtype=first[0].dtype if first else torch.float32,
        )
        self.chunks = chunks

    @classmethod
    def of(cls, layers: Sequence[Tensor], mask_BS: Tensor) -> "LiveStates":
        """Return the states of one padded batch."""
        batch, columns = mask_BS.shape
        return cls([Chunk(layers, RealTokens(mask_BS))], (batch, columns))

    def scores(self, direction_E: Tensor) -> Tensor:
        """Return (N, L), see `States`."""
        return torch.cat([chunk.tokens.pick(layer_scores(chunk.layers, direction_E)) for chunk in self.chunks])

    def weighted_sum(self, weights_NL: Tensor) -> Tensor:
        """Return (N, E), see `States`."""
        parts = weights_NL.split([len(chunk.tokens) for chunk in self.chunks])
        return torch.cat(
            [
                chunk.tokens.pick(weighted_sum(chunk.layers, chunk.tokens.spread(part_nL)))
                for chunk, part_nL in zip(self.chunks, parts, strict=True)
            ]
        )

    def inverse_rms(self, dtype: torch.dtype) -> Tensor:
        """Return (N, L), see `States`."""
        return torch.cat([chunk.tokens.pick(inverse_rms(chunk.layers, dtype)) for chunk in self.chunks])

    def layer(self, place: int) -> Tensor:
        """Return (N, E), see `States`."""
        return torch.cat([chunk.tokens.pick(chunk.layers[place]) for chunk in self.chunks])
