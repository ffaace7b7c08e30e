"""States that the encoder has not put out yet: what is asked of them decides how much of them is ever held.

Shapes: N real tokens of the batch, L encoder layers, E encoder width; b, s, n rows, columns and real tokens of one
chunk.

One layer, or one sum over layers with weights known beforehand, needs no more memory than one layer: the encoder hands
over its layers one by one. All else holds the L layers as the encoder put them out.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from layerbridge.model.chunks import like_length
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.model.mixing import RMS_EPSILON
from layerbridge.model.states import Chunk, LiveStates, RealTokens, States


class Pass(NamedTuple):
    """What the encoder reads at once: rows of like length."""

    ids_bs: Tensor
    mask_bs: Tensor
    tokens: RealTokens


class LazyStates(States):
    """The states of a batch of texts, which the encoder reads when it is known what is wanted of them.

    Args:
        encoder: frozen, or with biases or adapters that train.
        source_ids_BS: right-padded.
        source_mask_BS: true at real tokens.
        recompute: in training, let the encoder read the texts again in the backward pass of a sum over layers instead
            of holding the layers: no more memory for more layers, at the cost of an encoder pass.
    """

    def __init__(
        self, encoder: FrozenEncoder, source_ids_BS: Tensor, source_mask_BS: Tensor, *, recompute: bool = False
    ) -> None:
        self.encoder = encoder
        self.recompute = recompute
        self.passes = list(_passes(source_ids_BS, source_mask_BS))
        super().__init__(
            rows_N=torch.cat([one.tokens.rows_n for one in self.passes]),
            shape=(source_ids_BS.shape[0], source_ids_BS.shape[1]),
            num_layers=len(encoder.layer_numbers),
            width=encoder.width,
            dtype=next(encoder.model.parameters()).dtype,
        )
        self._held: LiveStates | None = None

    @property
    def held(self) -> LiveStates:
        """All L layers, in memory."""
        if self._held is None:
            chunks = [Chunk(self.encoder(one.ids_bs, one.mask_bs), one.tokens) for one in self.passes]
            self._held = LiveStates(chunks, self.shape)
        return self._held

    @property
    def _wants_gradients(self) -> bool:
        """Whether gradients are to reach the encoder."""
        return self.encoder.trains and torch.is_grad_enabled()

    def scores(self, direction_E: Tensor) -> Tensor:
        """Return (N, L), see `States`."""
        return self.held.scores(direction_E)

    def weighted_sum(self, weights_NL: Tensor) -> Tensor:
        """Return (N, E), see `States`."""
        return self.held.weighted_sum(weights_NL)

    def inverse_rms(self, dtype: torch.dtype) -> Tensor:
        """Return (N, L), see `States`."""
        return self.held.inverse_rms(dtype)

    def layer(self, place: int) -> Tensor:
        """Return (N, E), see `States`; no other layer is held."""
        if self._held is not None or self._wants_gradients:
            return self.held.layer(place)
        found: list[Tensor] = []

        def keep(number: int, states_nE: Tensor) -> None:
            if number == place:
                found.append(states_nE)

        for one in self.passes:
            self.read(one, keep)
        return torch.cat(found)

    def layer_sum(self, weights_L: Tensor, *, normalized: bool = False) -> Tensor:
        """Return (N, E), see `States`; without gradients, or with `recompute`, as a running sum."""
        differentiable = torch.is_grad_enabled() and weights_L.requires_grad and not self.recompute
        if self._held is not None or self._wants_gradients or differentiable:
            return super().layer_sum(weights_L, normalized=normalized)
        total_NE: Tensor = _RunningSum.apply(weights_L, self, normalized)
        return total_NE

    def read(self, one: Pass, on_layer: Callable[[int, Tensor], None]) -> None:
        """Let the encoder read once, and hand over the layers' places and states (n, E), one by one."""

        def give(place: int, states_bsE: Tensor) -> None:
            on_layer(place, one.tokens.pick(states_bsE))

        self.encoder.stream(one.ids_bs, one.mask_bs, give)


def _passes(source_ids_BS: Tensor, source_mask_BS: Tensor) -> Iterator[Pass]:
    lengths = source_mask_BS.sum(dim=1).tolist()
    columns = source_ids_BS.shape[1]
    for rows in like_length(lengths, source_ids_BS.device.type):
        longest = max(lengths[row] for row in rows)
        rows_b = torch.tensor(rows, device=source_ids_BS.device)
        mask_bs = source_mask_BS[rows_b, :longest]
        yield Pass(source_ids_BS[rows_b, :longest], mask_bs, RealTokens(mask_bs, rows_b, columns))


class _RunningSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_L: Tensor, states: LazyStates, normalized: bool) -> Tensor:
        ctx.states, ctx.normalized, ctx.dtype = states, normalized, weights_L.dtype
        sums_NE = torch.zeros((len(states.rows_N), states.width), dtype=weights_L.dtype, device=weights_L.device)
        for one, sum_nE in zip(states.passes, _parts(sums_NE, states), strict=True):

            def add(place: int, states_nE: Tensor, sum_nE: Tensor = sum_nE) -> None:
                sum_nE.addcmul_(weights_L[place], _scaled(states_nE, weights_L.dtype, normalized))

            states.read(one, add)
        return sums_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, None, None]:
        states: LazyStates = ctx.states
        grad_L = torch.zeros(states.num_layers, dtype=ctx.dtype, device=grad_NE.device)
        for one, grad_nE in zip(states.passes, _parts(grad_NE.contiguous(), states), strict=True):

            def dot(place: int, states_nE: Tensor, grad_nE: Tensor = grad_nE) -> None:
                scaled_nE = _scaled(states_nE, ctx.dtype, ctx.normalized)
                grad_L[place] += torch.dot(scaled_nE.flatten(), grad_nE.flatten())

            states.read(one, dot)
        return grad_L, None, None


def _parts(whole_NE: Tensor, states: LazyStates) -> tuple[Tensor, ...]:
    """Return each pass's rows (n, E), in place."""
    return whole_NE.split([len(one.tokens) for one in states.passes])


def _scaled(states_nE: Tensor, dtype: torch.dtype, normalized: bool) -> Tensor:
    states_nE = states_nE.to(dtype)
    return F.rms_norm(states_nE, states_nE.shape[-1:], eps=RMS_EPSILON) if normalized else states_nE
