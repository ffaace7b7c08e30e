"""Scoring of given answers, alone or together with the greedy text, after one pass over what stands before them.

Shapes: B batch, N answers, M nodes of the answers' trie, R rows of a pass (B x N, or texts not yet ended), T LLM
positions, A answer tokens, D LLM width, V LLM vocabulary.

All answers follow the same prefix, and so does the greedy text: the prefix is read once and its cache is shared. The
answers stand side by side after it, as a trie: beginnings that they share are read once, and each token sees the
prefix and its own beginning alone. LLMs that do not take such a mask read a copy of the prefix for each answer.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from layerbridge.errors import DataError
from layerbridge.model.generation import check_length, generation_options
from layerbridge.model.processor import BridgeInputs, BridgeProcessor, pad_right
from layerbridge.model.splice import Piece, Spliced, splice

MAX_SCORED_LOGITS = 2**27
"""Logits (texts x answers x tokens x vocabulary) of one scoring pass; more answers take more passes."""


class PrefixReader(Protocol):
    """What scoring and generation need: a causal LLM, and what it reads before the answer."""

    if TYPE_CHECKING:
        processor: BridgeProcessor
        llm: PreTrainedModel

    @property
    def device(self) -> torch.device:
        """Where the LLM is."""

    def eval(self) -> Self:
        """Switch dropout off."""

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the LLM's own input embeddings of token ids."""

    def prefix_pieces(self, inputs: BridgeInputs) -> list[Piece]:
        """Return what the LLM reads before the answer, each piece with its mask."""


class Prefix(NamedTuple):
    """A batch's prefix as the LLM has read it."""

    spliced: Spliced
    logits_BV: Tensor
    """Of the first token after the prefix, float32."""
    cache: Any
    """The LLM's keys and values; whoever goes on from it consumes it."""


class ScoringMixin:
    """`score` and `answer`, for any `PrefixReader`."""

    @torch.inference_mode()
    def score(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        max_source_tokens: int = 512,
    ) -> Tensor:
        """Return log p(answer, end | text), summed over tokens: (B, N), float32, on the CPU.

        The prefix of each text is read once; its cache is shared by all answers. Exact: equal to scoring each text and
        answer alone.

        Args:
            texts: B texts for the encoder.
            answers: N answers, the same for all texts.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            max_source_tokens: longer texts are cut.
        """
        reader = cast(PrefixReader, self)
        rows = _answer_rows(reader, answers)
        prefix = _read_prefix(reader, texts, prompts, max_source_tokens, room=max(map(len, rows)))
        return _score_after(reader, prefix, rows)

    @torch.inference_mode()
    def answer(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        max_source_tokens: int = 512,
    ) -> tuple[Tensor, list[str]]:
        """Return what `score` and greedy `generate` return, from one encoding and one pass over the prefix.

        Log-probabilities agree with `score` up to rounding, and texts are those of `generate` unless two tokens are
        equally probable up to rounding: rows that have ended leave the batch here.

        Args:
            texts: B texts for the encoder.
            answers: N answers, the same for all texts.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            max_new_tokens: LLM tokens of a greedy text.
            max_source_tokens: longer texts are cut.
        """
        reader = cast(PrefixReader, self)
        options = generation_options(reader, max_new_tokens)["generation_config"]
        rows = _answer_rows(reader, answers)
        room = max(max_new_tokens, *map(len, rows))
        prefix = _read_prefix(reader, texts, prompts, max_source_tokens, room=room)
        copied = prefix._replace(cache=copy.deepcopy(prefix.cache))
        written = _greedy_after(reader, copied, max_new_tokens=max_new_tokens, ends=options.eos_token_id)
        ids_BA, _ = pad_right(written, options.pad_token_id)
        greedy = reader.processor.llm_tokenizer.batch_decode(ids_BA, skip_special_tokens=True)
        return _score_after(reader, prefix, rows), list(greedy)


def _answer_rows(reader: PrefixReader, answers: Sequence[str]) -> list[list[int]]:
    if not answers:
        raise DataError("Got no answers to score; wanted at least one.")
    return reader.processor.answer_ids(answers)


def _read_prefix(
    reader: PrefixReader, texts: Sequence[str], prompts: Sequence[str] | None, max_source_tokens: int, *, room: int
) -> Prefix:
    """Read a batch up to its answers; `room` is how many positions may follow."""
    reader.eval()
    inputs = reader.processor(texts, prompts=prompts, max_source_tokens=max_source_tokens).to(reader.device)
    spliced = splice(reader.prefix_pieces(inputs))
    check_length(reader.llm, spliced.mask_BT.shape[1] + room)
    read = reader.llm(
        inputs_embeds=spliced.embeds_BTD,
        attention_mask=spliced.mask_BT.long(),
        position_ids=spliced.position_ids_BT,
        logits_to_keep=1,
        use_cache=True,
    )
    return Prefix(spliced, read.logits[:, -1].float(), read.past_key_values)


def _score_after(reader: PrefixReader, prefix: Prefix, rows: list[list[int]]) -> Tensor:
    """Score answers (rows of ids) in as many passes as their logits need; the prefix's cache is consumed."""
    first_BV = torch.log_softmax(prefix.logits_BV, dim=-1)
    batch, vocabulary = first_BV.shape
    per_pass = max(1, MAX_SCORED_LOGITS // (batch * max(map(len, rows)) * vocabulary))
    starts = range(0, len(rows), per_pass)
    columns = []
    for start in starts:
        some = rows[start : start + per_pass]
        score = _score_trie if _takes_tries(reader, prefix, some) else _score_copies
        cache = prefix.cache if start == starts[-1] else copy.deepcopy(prefix.cache)
        columns.append(score(reader, some, cache, first_BV, prefix.spliced))
    return torch.cat(columns, dim=1).cpu()


class Trie(NamedTuple):
    """Answers as one tree: a node for each different beginning, the last token (the end) left out."""

    tokens: list[int]
    """M tokens, each after its parent."""
    depths: list[int]
    """M depths, from 1."""
    parents: list[int]
    """M numbers of the parents; -1: the prefix."""
    steps: list[tuple[int, int, int]]
    """(answer, node, token): this answer goes on from this node with this token."""


def build_trie(rows: Sequence[Sequence[int]]) -> Trie:
    """Return the answers' trie; a row is an answer's tokens with the end token."""
    nodes: dict[tuple[int, ...], int] = {}
    trie = Trie([], [], [], [])
    for answer, row in enumerate(rows):
        for length in range(1, len(row)):
            beginning = tuple(row[:length])
            if beginning not in nodes:
                nodes[beginning] = len(nodes)
                trie.tokens.append(row[length - 1])
                trie.depths.append(length)
                trie.parents.append(nodes.get(beginning[:-1], -1))
            trie.steps.append((answer, nodes[beginning], row[length]))
    return trie


_TAKES_TRIES: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _takes_tries(reader: PrefixReader, prefix: Prefix, rows: list[list[int]]) -> bool:
    """Return whether the LLM reads a trie as it reads copies: found out once, on two texts."""
    window = getattr(reader.llm.config.get_text_config(), "sliding_window", None)
    longest = prefix.spliced.mask_BT.shape[1] + sum(map(len, rows))
    if window is not None and longest > window:
        return False
    if reader.llm not in _TAKES_TRIES:
        last = prefix.logits_BV.shape[0] - 1
        two = torch.tensor(sorted({0, last}), device=prefix.logits_BV.device)  # often the longest and the shortest
        first_BV = torch.log_softmax(prefix.logits_BV[two], dim=-1)
        spliced = Spliced(*(part[two] for part in prefix.spliced))
        found = []
        for score in (_score_copies, _score_trie):
            cache = copy.deepcopy(prefix.cache)
            cache.batch_select_indices(two)
            try:
                found.append(score(reader, rows, cache, first_BV, spliced))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError):  # an attention that wants another kind of mask
                found.append(torch.full((len(two), len(rows)), torch.nan, device=first_BV.device))
        tolerance = 1e-3 if reader.llm.dtype == torch.float32 else 0.02
        _TAKES_TRIES[reader.llm] = bool(torch.allclose(found[0], found[1], atol=tolerance, rtol=tolerance))
    return _TAKES_TRIES[reader.llm]


def _score_trie(reader: PrefixReader, rows: list[list[int]], cache: Any, first_BV: Tensor, spliced: Spliced) -> Tensor:
    """Score some answers side by side after a cached prefix; `cache` is consumed."""
    trie, device = build_trie(rows), reader.device
    batch, num_nodes = spliced.mask_BT.shape[0], len(trie.tokens)
    sees_MM = torch.eye(num_nodes, dtype=torch.bool)
    for node, parent in enumerate(trie.parents):
        if parent >= 0:
            sees_MM[node] |= sees_MM[parent]
    sees_BMT = torch.cat(
        [
            spliced.mask_BT[:, None, :].expand(-1, num_nodes, -1),
            sees_MM.to(device)[None].expand(batch, -1, -1),
        ],
        dim=-1,
    )
    embeds_BMD = reader.embed(torch.tensor(trie.tokens, device=device).expand(batch, -1))
    mask_B1MT = torch.zeros(sees_BMT.shape, dtype=embeds_BMD.dtype, device=device)
    mask_B1MT = mask_B1MT.masked_fill(~sees_BMT, torch.finfo(embeds_BMD.dtype).min)[:, None]
    logits_BMV = reader.llm(
        inputs_embeds=embeds_BMD,
        attention_mask=mask_B1MT,
        position_ids=spliced.position_ids_BT[:, -1:] + torch.tensor(trie.depths, device=device),
        past_key_values=cache,
        use_cache=True,
    ).logits.float()
    answers_P, nodes_P, tokens_P = torch.tensor(trie.steps, device=device).T
    totals_BM = torch.logsumexp(logits_BMV, dim=-1)
    steps_BP = logits_BMV[:, nodes_P, tokens_P] - totals_BM[:, nodes_P]
    scores_BN = first_BV[:, [row[0] for row in rows]]
    return scores_BN.index_add(1, answers_P, steps_BP)


def _score_copies(
    reader: PrefixReader, rows: list[list[int]], cache: Any, first_BV: Tensor, spliced: Spliced
) -> Tensor:
    """Score some answers, each after a copy of a cached prefix; `cache` is consumed."""
    batch, count = spliced.mask_BT.shape[0], len(rows)
    answers_NA, real_NA = (tensor.to(reader.device) for tensor in pad_right(rows, 0))
    scores_BN = first_BV.gather(1, answers_NA[:, 0].expand(batch, count))
    cache.batch_repeat_interleave(count)
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
        past_key_values=cache,
        use_cache=True,
    ).logits
    targets_RA = answers_NA[:, 1:].repeat(batch, 1)
    log_probs_RA = -F.cross_entropy(logits_RAV.float().flatten(0, 1), targets_RA.flatten(), reduction="none").view_as(
        targets_RA
    )
    log_probs_RA = log_probs_RA.masked_fill(~real_NA[:, 1:].repeat(batch, 1), 0.0)
    return scores_BN + log_probs_RA.sum(-1).view(batch, count)


def _greedy_after(reader: PrefixReader, prefix: Prefix, *, max_new_tokens: int, ends: list[int]) -> list[list[int]]:
    """Return the most probable next tokens of each row, up to an end token; the prefix's cache is consumed."""
    written: list[list[int]] = [[] for _ in prefix.logits_BV]
    going = list(range(len(written)))
    """The rows of the batch that have not ended; R of them."""
    logits_RV, mask_RT, last_R1 = prefix.logits_BV, prefix.spliced.mask_BT, prefix.spliced.position_ids_BT[:, -1:]
    for step in range(1, max_new_tokens + 1):
        tokens_R = logits_RV.argmax(-1)
        tokens = tokens_R.tolist()
        for row, token in zip(going, tokens, strict=True):
            written[row].append(token)
        kept = [index for index, token in enumerate(tokens) if token not in ends]
        if not kept or step == max_new_tokens:
            break
        if len(kept) < len(going):
            going = [going[index] for index in kept]
            kept_R = torch.tensor(kept, device=reader.device)
            prefix.cache.batch_select_indices(kept_R)
            tokens_R, mask_RT, last_R1 = tokens_R[kept_R], mask_RT[kept_R], last_R1[kept_R]
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones((len(going), 1))], dim=1)
        logits_RV = (
            reader.llm(
                inputs_embeds=reader.embed(tokens_R.unsqueeze(1)),
                attention_mask=mask_RT.long(),
                position_ids=last_R1 + step,
                past_key_values=prefix.cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
    return written
