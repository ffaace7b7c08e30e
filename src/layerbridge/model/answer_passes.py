"""Passes of the LLM over a prefix and the answers after it, as a trie or as copies; which LLMs read tries.

Shapes: B batch, N answers, M nodes of the answers' trie, K the prefix's last position and the nodes (M + 1), R rows of
copies (B x N), T LLM positions, A answer tokens, D LLM width, V LLM vocabulary.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from layerbridge.errors import is_out_of_memory
from layerbridge.model.found_out import found_out
from layerbridge.model.last_layer import last_layer_at
from layerbridge.model.processor import pad_right
from layerbridge.model.splice import Spliced, positions
from layerbridge.model.trie import Trie, add_up, build_trie, sight

if TYPE_CHECKING:
    from layerbridge.model.scoring import PrefixReader


class AnswerSet(NamedTuple):
    """Answers as the LLM reads them."""

    rows: list[list[int]]
    """Each answer's tokens with the end token."""
    trie: Trie


class Read(NamedTuple):
    """What the LLM has read of a batch."""

    logits_BKV: Tensor
    """At the prefix's last position and, where a trie was read, at its nodes."""
    cache: Any
    """The LLM's keys and values, if they were asked for; whoever goes on from them consumes them."""


def read_prefix(reader: "PrefixReader", spliced: Spliced) -> Read:
    """Read what stands before the answers, and keep the cache."""
    length = spliced.mask_BT.shape[1]
    with last_layer_at(reader.llm, torch.tensor([length - 1], device=reader.device), length):
        read = reader.llm(
            inputs_embeds=spliced.embeds_BTD,
            attention_mask=spliced.mask_BT.long(),
            position_ids=spliced.position_ids_BT,
            logits_to_keep=1,
            use_cache=True,
        )
    return Read(read.logits, read.past_key_values)


def read_trie(reader: "PrefixReader", spliced: Spliced, trie: Trie, *, use_cache: bool = False) -> Read:
    """Read `[prefix | trie]`."""
    embeds_BMD, position_ids_BM = _nodes(reader, spliced, trie)
    length = spliced.mask_BT.shape[1]
    # As places, not as a number from the end: those are copied together, and the head is one product, not one a row.
    places_K = torch.arange(length - 1, length + len(trie.tokens), device=reader.device)
    with last_layer_at(reader.llm, places_K, length + len(trie.tokens)):
        read = reader.llm(
            inputs_embeds=torch.cat([spliced.embeds_BTD, embeds_BMD], dim=1),
            attention_mask=sight(trie, spliced.mask_BT, dtype=embeds_BMD.dtype, behind_cache=False),
            position_ids=torch.cat([spliced.position_ids_BT, position_ids_BM], dim=1),
            logits_to_keep=places_K,
            use_cache=use_cache,
        )
    return Read(read.logits, read.past_key_values)


def read_trie_after(reader: "PrefixReader", spliced: Spliced, trie: Trie, prefix: Read) -> Read:
    """Read a trie behind a cached prefix; the cache is consumed."""
    embeds_BMD, position_ids_BM = _nodes(reader, spliced, trie)
    read = reader.llm(
        inputs_embeds=embeds_BMD,
        attention_mask=sight(trie, spliced.mask_BT, dtype=embeds_BMD.dtype, behind_cache=True),
        position_ids=position_ids_BM,
        past_key_values=prefix.cache,
        use_cache=True,
    )
    return Read(torch.cat([prefix.logits_BKV, read.logits], dim=1), read.past_key_values)


def _nodes(reader: "PrefixReader", spliced: Spliced, trie: Trie) -> tuple[Tensor, Tensor]:
    """Return embeddings (B, M, D) and position ids (B, M) of a trie's nodes."""
    batch, device = spliced.mask_BT.shape[0], reader.device
    embeds_MD = reader.embed(torch.tensor([trie.tokens], device=device))[0].to(spliced.embeds_BTD.dtype)
    position_ids_BM = spliced.position_ids_BT[:, -1:] + torch.tensor(trie.depths, device=device)
    return embeds_MD.expand(batch, -1, -1), position_ids_BM


def cut_back(reader: "PrefixReader", spliced: Spliced, cache: Any, num_nodes: int, max_new_tokens: int) -> Any | None:
    """Return the cache of `[prefix | trie]` without the trie; None where that or what follows is not possible.

    A sliding window counts the pads that stand between prefix and text, so a text that may reach beyond it is not
    written behind them.
    """
    window = _window(reader.llm)
    if window is not None and spliced.mask_BT.shape[1] + num_nodes + max_new_tokens >= window:
        return None
    try:
        cache.crop(-num_nodes)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:  # a kind of cache that only grows
        if is_out_of_memory(error):
            raise
        return None
    return cache


def score_trie(reader: "PrefixReader", spliced: Spliced, prefix: Read, part: AnswerSet) -> Tensor:
    """Score some answers side by side after a cached prefix, which is consumed: (B, N)."""
    return add_up(part.trie, read_trie_after(reader, spliced, part.trie, prefix).logits_BKV)


def score_copies(reader: "PrefixReader", spliced: Spliced, prefix: Read, part: AnswerSet) -> Tensor:
    """Score some answers, each after a copy of a cached prefix, which is consumed: (B, N)."""
    batch, count = spliced.mask_BT.shape[0], len(part.rows)
    answers_NA, real_NA = (tensor.to(reader.device) for tensor in pad_right(part.rows, 0))
    first_BV = torch.log_softmax(prefix.logits_BKV[:, -1], dim=-1, dtype=torch.float32)
    scores_BN = first_BV.gather(1, answers_NA[:, 0].expand(batch, count))
    prefix.cache.batch_repeat_interleave(count)
    # Rows are now text-major: text 0 with every answer, text 1 with every answer, ...
    inputs_RA = answers_NA[:, :-1].repeat(batch, 1)
    real_RA = real_NA[:, :-1].repeat(batch, 1)
    mask_RT = torch.cat([spliced.mask_BT.repeat_interleave(count, dim=0), real_RA], dim=1)
    last_R1 = spliced.position_ids_BT[:, -1:].repeat_interleave(count, dim=0)
    steps_A = torch.arange(1, inputs_RA.shape[1] + 1, device=reader.device)
    logits_RAV = reader.llm(
        inputs_embeds=reader.embed(inputs_RA),
        attention_mask=mask_RT.long(),
        position_ids=last_R1 + steps_A,
        past_key_values=prefix.cache,
        use_cache=True,
    ).logits
    targets_RA = answers_NA[:, 1:].repeat(batch, 1)
    log_probs_RA = -F.cross_entropy(logits_RAV.float().flatten(0, 1), targets_RA.flatten(), reduction="none").view_as(
        targets_RA
    )
    log_probs_RA = log_probs_RA.masked_fill(~real_NA[:, 1:].repeat(batch, 1), 0.0)
    return scores_BN + log_probs_RA.sum(-1).view(batch, count)


# -------------------------------------------------------------------------------------------------------------------
# Which LLMs read tries


def takes_tries(reader: "PrefixReader", spliced: Spliced, part: AnswerSet) -> bool:
    """Return whether the LLM reads a trie as it reads copies: found out once, on answers of its own."""
    window, config = _window(reader.llm), reader.llm.config.get_text_config()
    longest = spliced.mask_BT.shape[1] + sum(map(len, part.rows))
    if (window is not None and longest > window) or longest > getattr(config, "max_position_embeddings", longest):
        return False
    return found_out("tries", reader.llm, lambda: _try_out(reader, spliced))


def _try_out(reader: "PrefixReader", spliced: Spliced) -> bool:
    """Read answers that part ways after two texts, one of them behind a pad, in all forms."""
    two = torch.tensor([0, spliced.mask_BT.shape[0] - 1], device=reader.device)
    embeds_BTD, mask_BT = spliced.embeds_BTD[two], spliced.mask_BT[two]
    if mask_BT.shape[1] > 1:
        mask_BT[1, 0], embeds_BTD[1, 0] = False, 0.0
    some = Spliced(embeds_BTD, mask_BT, positions(mask_BT), spliced.labels_BT[two])
    rows = [[3, 4, 5], [3, 6, 5], [4, 5]]
    part = AnswerSet(rows, build_trie(rows))
    wanted_BN = score_copies(reader, some, read_prefix(reader, some), part)
    forms = (
        add_up(part.trie, read_trie(reader, some, part.trie).logits_BKV),
        score_trie(reader, some, read_prefix(reader, some), part),
    )
    tolerance = 1e-3 if reader.llm.dtype == torch.float32 else 0.02
    return all(torch.allclose(found_BN, wanted_BN, atol=tolerance, rtol=tolerance) for found_BN in forms)


def _window(llm: PreTrainedModel) -> int | None:
    """Return how many positions some layer of the LLM sees, if not all."""
    window: int | None = getattr(llm.config.get_text_config(), "sliding_window", None)
    return window
