"""Greedy text, token by token, where some rows have written more than others already.

Shapes: B batch, R rows that have not ended, W tokens written by the row that has written most, T LLM positions, D LLM
width, V LLM vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from layerbridge.model.processor import pad_right
from layerbridge.model.splice import Piece, Spliced, positions, splice

if TYPE_CHECKING:
    from layerbridge.model.scoring import PrefixReader


class Going(NamedTuple):
    """R rows as the LLM has read them, ready for their next token."""

    rows: list[int]
    """Which rows of the batch these are."""
    logits_RV: Tensor
    """Of the next token."""
    mask_RT: Tensor
    """True at the real positions of the cache."""
    next_R1: Tensor
    """Position of the next token."""
    cache: Any
    """The LLM's keys and values; whoever goes on from it consumes it."""


def unended(written: Sequence[Sequence[int]], *, ends: Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the rows whose text goes on."""
    return [row for row, ids in enumerate(written) if len(ids) < max_new_tokens and not (ids and ids[-1] in ends)]


def read_written(
    reader: "PrefixReader", spliced: Spliced, cache: Any | None, written: list[list[int]], rows: list[int]
) -> Going:
    """Let the LLM read what some rows have written, at least one token each.

    Args:
        reader: with the LLM.
        spliced: the batch's prefix.
        cache: of the batch's prefix, consumed; pads then stand between prefix and text. Without one the prefix is read
            again, and all pads stand before it.
        written: of all B rows, tokens.
        rows: which rows are to be read.
    """
    device = reader.device
    rows_R = torch.tensor(rows, device=device)
    kept = Spliced(*(part[rows_R] for part in spliced))
    ids_RW, real_RW = (tensor.flip(1).to(device) for tensor in pad_right([written[row][::-1] for row in rows], 0))
    new = Piece(reader.embed(ids_RW), real_RW)
    if cache is None:
        read = splice([Piece(kept.embeds_BTD, kept.mask_BT), new])
        embeds_RXD, mask_RT, position_ids_RX = read.embeds_BTD, read.mask_BT, read.position_ids_BT
    else:
        cache.batch_select_indices(rows_R)
        mask_RT = torch.cat([kept.mask_BT, real_RW], dim=1)
        embeds_RXD, position_ids_RX = new.embeds_BTD, positions(mask_RT)[:, -real_RW.shape[1] :]
    out = reader.llm(
        inputs_embeds=embeds_RXD,
        attention_mask=mask_RT.long(),
        position_ids=position_ids_RX,
        past_key_values=cache,
        logits_to_keep=1,
        use_cache=True,
    )
    return Going(rows, out.logits[:, -1], mask_RT, position_ids_RX[:, -1:] + 1, out.past_key_values)


def write_on(
    reader: "PrefixReader", going: Going, written: list[list[int]], *, ends: Sequence[int], max_new_tokens: int
) -> None:
    """Add the most probable next tokens to each row of `written`, up to an end token; the cache is consumed.

    Rows that end leave the batch.
    """
    rows, logits_RV, mask_RT, next_R1, cache = going
    while True:
        tokens_R = logits_RV.argmax(-1)
        for row, token in zip(rows, tokens_R.tolist(), strict=True):
            written[row].append(token)
        left = set(unended(written, ends=ends, max_new_tokens=max_new_tokens))
        kept = [index for index, row in enumerate(rows) if row in left]
        if not kept:
            return
        if len(kept) < len(rows):
            rows = [rows[index] for index in kept]
            kept_R = torch.tensor(kept, device=reader.device)
            cache.batch_select_indices(kept_R)
            tokens_R, mask_RT, next_R1 = tokens_R[kept_R], mask_RT[kept_R], next_R1[kept_R]
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones((len(rows), 1))], dim=1)
        logits_RV = reader.llm(
            inputs_embeds=reader.embed(tokens_R.unsqueeze(1)),
            attention_mask=mask_RT.long(),
            position_ids=next_R1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        next_R1 = next_R1 + 1
