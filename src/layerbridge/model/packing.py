"""Packing: all rows of a batch one after another in one row, without padding, each attending to itself alone.

Shapes: B rows, T positions of all rows together, S positions of the longest row (or soft tokens of it), N soft tokens
of all rows, P prompt tokens, A answer tokens, H heads, C width of a head, D LLM width, V LLM vocabulary.

The linear layers, most of an LLM's work, then see real positions only. Attention wants rows: inside the attention
function queries, keys and values are laid out as rows, attended with torch's causal kernel, which needs no mask, and
laid out one after another again. LLMs take the function through transformers' attention interface. Whether one does is
found out once, by comparing it with a padded batch; LLMs that do not are given padded batches.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, PreTrainedModel

from layerbridge.model.found_out import found_out, same
from layerbridge.model.last_layer import last_layer_at
from layerbridge.model.splice import IGNORED

NAME = "layerbridge_packed"
"""Of the attention function, in transformers' table of them."""
MAX_PLAIN = 256
"""Longest row whose bfloat16 attention on a CPU is two matrix products: the backward pass of torch's own kernel takes
5 to 8 times as long there, and at 300 positions still 1.7 times."""


class Layout(NamedTuple):
    """Where the positions of packed rows are."""

    starts_B: Tensor
    """Where each row starts."""
    positions_T: Tensor
    """Position ids: from 0 in each row."""
    padded_T: Tensor
    """Place of each position in the flattened padded batch (B, S)."""
    packed_BS: Tensor
    """Place of each cell of the padded batch in the packed row; any at padding."""

    @classmethod
    def of(cls, lengths_B: Tensor) -> "Layout":
        """Return the layout of rows of these lengths."""
        batch, longest = len(lengths_B), int(lengths_B.max())
        starts_B = lengths_B.cumsum(0) - lengths_B
        columns_S = torch.arange(longest, device=lengths_B.device)
        real_BS = columns_S < lengths_B[:, None]
        padded_T = real_BS.flatten().nonzero().squeeze(1)
        packed_BS = torch.minimum(starts_B[:, None] + columns_S, lengths_B.sum() - 1)
        return cls(starts_B, columns_S.repeat(batch)[padded_T], padded_T, packed_BS)


class PackedRows(NamedTuple):
    """A batch's rows `bos | soft tokens | boundary | text prompt | answer` without padding."""

    layout: Layout
    ids_T: Tensor
    """Token ids; any where soft tokens and boundaries stand."""
    soft_BS: Tensor
    """Place of each soft token in the packed rows; any at padding."""
    boundaries_B: Tensor
    """Places of the boundaries."""
    answers_A: Tensor
    """The answers' tokens and end tokens, all rows'."""
    before_answers_A: Tensor
    """The place before each of them, whose logits predict it."""

    def fill(self, embeds_TD: Tensor, soft_ND: Tensor, rows_N: Tensor, boundary_D: Tensor) -> Tensor:
        """Return the rows' embeddings (T, D).

        Args:
            embeds_TD: of `ids_T`.
            soft_ND: the soft tokens, in any order.
            rows_N: the place of each in the flattened (B, S).
            boundary_D: the boundary vector.
        """
        dtype = embeds_TD.dtype
        places_N = self.soft_BS.flatten()[rows_N]
        boundary_BD = boundary_D.to(dtype).expand(len(self.boundaries_B), -1)
        return embeds_TD.index_copy(0, places_N, soft_ND.to(dtype)).index_copy(0, self.boundaries_B, boundary_BD)


def pack_rows(
    soft_mask_BS: Tensor, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, labels_BA: Tensor, *, bos_id: int | None
) -> PackedRows:
    """Return where everything stands. An answer's end token is predicted and not read, so it has no position.

    Args:
        soft_mask_BS: true at soft tokens, these first.
        prompt_ids_BP: of the text prompt; P may be 0.
        prompt_mask_BP: true at its real tokens, these first.
        labels_BA: answers with their end tokens, `IGNORED` after them.
        bos_id: of the LLM's first token, if it has one.
    """
    soft_mask_BS, prompt_mask_BP, answer_mask_BA = soft_mask_BS.bool(), prompt_mask_BP.bool(), labels_BA != IGNORED
    num_bos = 0 if bos_id is None else 1
    softs_B, prompts_B, answers_B = (mask.sum(dim=1) for mask in (soft_mask_BS, prompt_mask_BP, answer_mask_BA))
    layout = Layout.of(num_bos + softs_B + 1 + prompts_B + (answers_B - 1).clamp(min=0))
    soft_B1 = layout.starts_B[:, None] + num_bos
    boundaries_B = layout.starts_B + num_bos + softs_B
    prompt_B1 = boundaries_B[:, None] + 1
    answer_B1 = prompt_B1 + prompts_B[:, None]

    ids_T = torch.zeros_like(layout.positions_T)
    if bos_id is not None:
        ids_T[layout.starts_B] = bos_id
    columns_P, columns_A = (torch.arange(ids.shape[1], device=ids.device) for ids in (prompt_ids_BP, labels_BA))
    ids_T[(prompt_B1 + columns_P)[prompt_mask_BP]] = prompt_ids_BP[prompt_mask_BP]
    read_BA = columns_A < answers_B[:, None] - 1
    ids_T[(answer_B1 + columns_A)[read_BA]] = labels_BA[read_BA]
    return PackedRows(
        layout=layout,
        ids_T=ids_T,
        soft_BS=soft_B1 + torch.arange(soft_mask_BS.shape[1], device=soft_mask_BS.device),
        boundaries_B=boundaries_B,
        answers_A=labels_BA[answer_mask_BA],
        before_answers_A=(answer_B1 - 1 + columns_A)[answer_mask_BA],
    )


def packed_logits(llm: PreTrainedModel, embeds_TD: Tensor, layout: Layout, places: Tensor) -> Tensor:
    """Return an LLM's logits (len(places), V) at some places of packed rows."""
    with last_layer_at(llm, places, len(embeds_TD)), packed_attention(llm):
        logits: Tensor = llm(
            inputs_embeds=embeds_TD[None],
            # Of four dimensions, so it is taken as it is and no other is made; the attention function does not read it.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=embeds_TD.device),
            position_ids=layout.positions_T[None],
            logits_to_keep=places,
            use_cache=False,
            layout=layout,
        ).logits
    return logits[0]


@contextmanager
def packed_attention(llm: PreTrainedModel) -> Iterator[None]:
    """Let an LLM attend by `attend`, which reads packed rows; no other thread may call the LLM meanwhile."""
    config: Any = llm.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def recompute_context(
    llm: PreTrainedModel,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return what gradient checkpointing does around the forward pass and around doing it again: attend alike."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        packed = llm.config.get_text_config()._attn_implementation == NAME
        return nullcontext(), packed_attention(llm) if packed else nullcontext()

    return contexts


_OF_NO_MATTER = frozenset({"is_causal", "position_ids", "position_embeddings", "use_cache", "output_attentions"})
"""What attention functions are handed beside the rest, and what changes nothing here. All else is refused."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each packed row; an attention function of transformers.

    Args:
        module: the attention layer.
        query: (1, H, T, C).
        key: (1, H or fewer, T, C).
        value: likewise.
        attention_mask: not read.
        dropout: of the attention weights.
        scaling: of the scores; by default 1 / sqrt(C).
        sliding_window: positions that a query sees, itself included; by default all before it.
        layout: of the rows.
        other: what some LLMs' attention also wants.

    Returns:
        (1, T, H, C), and no weights.

    Raises:
        NotImplementedError: the LLM's attention wants more than this one does.
    """
    wanted = [name for name, value in other.items() if value is not None and name not in _OF_NO_MATTER]
    if wanted or layout is None:
        raise NotImplementedError(f"attention with {', '.join(wanted) or 'no layout'} cannot be packed")
    longest = layout.packed_BS.shape[1]
    query_BHSC, key_BKSC, value_BKSC = (_as_rows(states, layout) for states in (query, key, value))
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and longest <= MAX_PLAIN:
        sees_SS = _sees(longest, query.device, sliding_window)
        out_BHSC = _plain_attention(query_BHSC, key_BKSC, value_BKSC, sees_SS, scaling, dropout)
    else:
        in_window = sliding_window is None or longest <= sliding_window
        mask_SS = None if in_window else _sees(longest, query.device, sliding_window)
        shares = key.shape[1] != query.shape[1]
        if shares and not (in_window and key.shape[-1] == value.shape[-1] <= 256):
            # With shared heads and a mask, or wide heads, torch's attention would hold all scores.
            times, shares = query.shape[1] // key.shape[1], False
            key_BKSC, value_BKSC = (rows.repeat_interleave(times, dim=1) for rows in (key_BKSC, value_BKSC))
        out_BHSC = F.scaled_dot_product_attention(
            query_BHSC,
            key_BKSC,
            value_BKSC,
            attn_mask=mask_SS,
            is_causal=in_window,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=shares,
        )
    return _FromRows.apply(out_BHSC.transpose(1, 2).flatten(0, 1), layout)[None], None


def _sees(length: int, device: torch.device, window: int | None) -> Tensor:
    """Return (S, S): true where a query sees a key, at most `window` positions back, itself included."""
    age_SS = torch.arange(length, device=device)
    age_SS = age_SS[:, None] - age_SS
    return (age_SS >= 0) & (age_SS < (window or length))


def _plain_attention(
    query_BHSC: Tensor, key_BKSC: Tensor, value_BKSC: Tensor, sees_SS: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """Attend by two matrix products; heads that share a key are rows of one product."""
    batch, heads, length, width = query_BHSC.shape
    shared = (batch, key_BKSC.shape[1], -1)
    scores = query_BHSC.reshape(*shared, width) @ key_BKSC.transpose(-1, -2)
    scores_BHSS = scores.view(batch, heads, length, length).float() * (width**-0.5 if scaling is None else scaling)
    weights_BHSS = torch.softmax(scores_BHSS.masked_fill(~sees_SS, float("-inf")), dim=-1).to(value_BKSC.dtype)
    weights_BHSS = F.dropout(weights_BHSS, dropout, training=dropout > 0)
    return (weights_BHSS.view(*shared, length) @ value_BKSC).view(batch, heads, length, width)


def _as_rows(states_1HTC: Tensor, layout: Layout) -> Tensor:
    """Return (B, H, S, C)."""
    _, heads, _, width = states_1HTC.shape
    batch, longest = layout.packed_BS.shape
    states_THC = states_1HTC[0].transpose(0, 1)
    return _ToRows.apply(states_THC, layout).view(batch, longest, heads, width).transpose(1, 2)


class _ToRows(torch.autograd.Function):
    """Packed (T, ...) to padded (B x S, ...), anything at padding. autograd's own gradient is a slow scatter."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return packed.index_select(0, layout.packed_BS.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.layout.padded_T), None


class _FromRows(torch.autograd.Function):
    """Padded (B x S, ...) to packed (T, ...); no gradient at padding."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.shape = layout, padded.shape
        return padded.index_select(0, layout.padded_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.layout.padded_T, grad), None


AttentionInterface.register(NAME, attend)


def packs(llm: PreTrainedModel) -> bool:
    """Return whether an LLM reads packed rows as it reads padded ones."""
    return found_out("packed rows", llm, lambda: _found_to_pack(llm))


def _found_to_pack(llm: PreTrainedModel) -> bool:
    config: Any = llm.config.get_text_config()
    kinds = list(getattr(config, "layer_types", None) or ())
    if config._attn_implementation != "sdpa" or "chunked_attention" in kinds:
        return False
    embedding: Any = llm.get_input_embeddings()
    device = embedding.weight.device
    lengths_B = torch.tensor([7, 4], device=device)
    ids_T = torch.arange(11, device=device) % embedding.num_embeddings
    windows: list[int] = []
    with _noting_windows(windows):
        packed_2V = packed_logits(llm, embedding(ids_T), Layout.of(lengths_B), torch.tensor([6, 10], device=device))
    # Windows that only a mask knows of would be lost.
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if len(windows) < (kinds.count("sliding_attention") if kinds else has_window):
        return False
    alone = [
        llm(inputs_embeds=embedding(part)[None], logits_to_keep=1, use_cache=False).logits[0, -1]
        for part in ids_T.split(lengths_B.tolist())
    ]
    return same(packed_2V, torch.stack(alone))


@contextmanager
def _noting_windows(windows: list[int]) -> Iterator[None]:
    def noting(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if options.get("sliding_window") is not None:
            windows.append(options["sliding_window"])
        return attend(module, query, key, value, mask, **options)

    AttentionInterface.register(NAME, noting)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attend)
