"""Splice: the pieces that the LLM reads, as one left-padded batch of embeddings. Pure functions.

Shapes: B batch, T positions of the LLM, D LLM width.

`[bos | soft tokens | boundary | text prompt | answer]`: each piece comes with its own mask, pads anywhere; in the
result all pads stand on the left, so that no pad is ever in the middle, every row ends at the last position (generation
reads it there) and the answers sit in the last columns. Positions count real tokens only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position without loss, as in torch's cross-entropy."""


class Piece(NamedTuple):
    """One piece of what the LLM reads."""

    embeds_BTD: Tensor
    mask_BT: Tensor
    """True at real positions."""
    labels_BT: Tensor | None = None
    """Token ids to predict at these positions; none for pieces without loss."""


class Spliced(NamedTuple):
    """A left-padded batch, ready for the LLM."""

    embeds_BTD: Tensor
    mask_BT: Tensor
    position_ids_BT: Tensor
    labels_BT: Tensor


def splice(pieces: Sequence[Piece]) -> Spliced:
    """Join the pieces in order, every row's pads moved to the left; columns that are pad in all rows are dropped."""
    mask_BT = torch.cat([piece.mask_BT.bool() for piece in pieces], dim=1)
    embeds_BTD = torch.cat([piece.embeds_BTD for piece in pieces], dim=1)
    labels_BT = torch.cat([_labels(piece) for piece in pieces], dim=1)

    width = int(mask_BT.sum(dim=1).max())
    order_BT = torch.argsort(mask_BT.to(torch.int8), dim=1, stable=True)[:, mask_BT.shape[1] - width :]
    mask_BT = mask_BT.gather(1, order_BT)
    embeds_BTD = embeds_BTD.gather(1, order_BT.unsqueeze(-1).expand(-1, -1, embeds_BTD.shape[-1]))
    return Spliced(
        embeds_BTD=embeds_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0.0),
        mask_BT=mask_BT,
        position_ids_BT=positions(mask_BT),
        labels_BT=labels_BT.gather(1, order_BT).masked_fill(~mask_BT, IGNORED),
    )


def positions(mask_BT: Tensor) -> Tensor:
    """Return position ids that count real tokens from 0; pads get 0."""
    return (mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def _labels(piece: Piece) -> Tensor:
    if piece.labels_BT is not None:
        return piece.labels_BT
    return torch.full(piece.mask_BT.shape, IGNORED, dtype=torch.long, device=piece.mask_BT.device)
