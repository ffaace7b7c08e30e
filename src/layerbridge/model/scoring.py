"""Scoring of given answers, alone or together with the greedy text, in one pass of the LLM.

Shapes: B batch, N answers, K the prefix's last position and the nodes of the answers' trie, R rows that have not ended,
T LLM positions, A answer tokens, V LLM vocabulary.

All answers follow the same prefix, so one row holds `[prefix | trie]`: beginnings that answers share are read once, and
each token sees the prefix and its own beginning alone. The greedy text usually is an answer, and then the same logits
tell it to its end; rows whose text leaves the trie go on token by token. LLMs that do not take such a mask read the
prefix, and then a copy of it for each answer.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerbridge.errors import DataError
from layerbridge.model import answer_passes
from layerbridge.model.answer_passes import AnswerSet, Read
from layerbridge.model.batches import as_list
from layerbridge.model.chunks import like_length
from layerbridge.model.generation import check_length, generation_options
from layerbridge.model.greedy import Going, read_written, unended, write_on
from layerbridge.model.processor import BridgeInputs, BridgeProcessor, pad_right
from layerbridge.model.splice import Piece, Spliced, splice
from layerbridge.model.trie import add_up, build_trie, walk

MAX_SCORED_LOGITS = 2**27
"""Logits (texts x answers x tokens x vocabulary) of one scoring pass; more answers take more passes."""

ANSWER_SETS = 16
"""Sets of answers whose tokens and trie are remembered."""


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

        The LLM reads each text once, with all answers after it. Exact: equal to scoring each text and answer alone.

        Args:
            texts: B texts for the encoder.
            answers: N answers, the same for all texts.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            max_source_tokens: longer texts are cut.
        """
        reader = cast(PrefixReader, self)
        known = _answer_set(reader, answers)
        spliced = _splice(reader, texts, prompts, max_source_tokens, room=max(map(len, known.rows)))
        tries, parts, max_rows = _plan(reader, spliced, known)
        scores_BN = torch.empty((len(texts), len(answers)))
        for rows, chunk in _chunks(spliced, max_rows):
            if tries and len(parts) == 1:
                read = answer_passes.read_trie(reader, chunk, known.trie)
                scores_BN[rows] = add_up(known.trie, read.logits_BKV).cpu()
            else:
                prefix = answer_passes.read_prefix(reader, chunk)
                scores_BN[rows] = _score_after(reader, chunk, prefix, parts, tries=tries)
        return scores_BN

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
        """Return what `score` and greedy `generate` return; one pass of the LLM where all greedy texts are answers.

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
        known = _answer_set(reader, answers)
        room = max(max_new_tokens, *map(len, known.rows))
        spliced = _splice(reader, texts, prompts, max_source_tokens, room=room)
        until = {"ends": options.eos_token_id, "max_new_tokens": max_new_tokens}
        tries, parts, max_rows = _plan(reader, spliced, known)
        scores_BN = torch.empty((len(texts), len(answers)))
        written: list[list[int]] = [[] for _ in texts]
        for rows, chunk in _chunks(spliced, max_rows):
            if tries and len(parts) == 1:
                scores_BN[rows], some = _answer_at_once(reader, chunk, known, **until)
            else:
                scores_BN[rows], some = _answer_after(reader, chunk, parts, tries=tries, **until)
            for row, ids in zip(rows, some, strict=True):
                written[row] = ids
        ids_BA, _ = pad_right(written, options.pad_token_id)
        return scores_BN, list(reader.processor.llm_tokenizer.batch_decode(ids_BA, skip_special_tokens=True))


def _answer_at_once(
    reader: PrefixReader, spliced: Spliced, known: AnswerSet, *, ends: list[int], max_new_tokens: int
) -> tuple[Tensor, list[list[int]]]:
    """Return log-probabilities and greedy tokens from one pass, and more for texts that leave the trie."""
    read = answer_passes.read_trie(reader, spliced, known.trie, use_cache=True)
    written = walk(known.trie, read.logits_BKV, ends=ends, max_new_tokens=max_new_tokens)
    scores_BN = add_up(known.trie, read.logits_BKV).cpu()
    left = unended(written, ends=ends, max_new_tokens=max_new_tokens)
    if left:
        cache = answer_passes.cut_back(reader, spliced, read.cache, len(known.trie.tokens), max_new_tokens)
        going = read_written(reader, spliced, cache, written, left)
        write_on(reader, going, written, ends=ends, max_new_tokens=max_new_tokens)
    return scores_BN, written


def _answer_after(
    reader: PrefixReader,
    spliced: Spliced,
    parts: list[AnswerSet],
    *,
    tries: bool,
    ends: list[int],
    max_new_tokens: int,
) -> tuple[Tensor, list[list[int]]]:
    """Return the same from a pass over the prefix and more after it."""
    prefix = answer_passes.read_prefix(reader, spliced)
    written: list[list[int]] = [[] for _ in spliced.mask_BT]
    going = Going(
        rows=list(range(len(written))),
        logits_RV=prefix.logits_BKV[:, -1],
        mask_RT=spliced.mask_BT,
        next_R1=spliced.position_ids_BT[:, -1:] + 1,
        cache=copy.deepcopy(prefix.cache),
    )
    write_on(reader, going, written, ends=ends, max_new_tokens=max_new_tokens)
    return _score_after(reader, spliced, prefix, parts, tries=tries), written


_ANSWER_SETS: WeakKeyDictionary[BridgeProcessor, dict[tuple[str, ...], AnswerSet]] = WeakKeyDictionary()


def _answer_set(reader: PrefixReader, answers: Sequence[str]) -> AnswerSet:
    """Return answers as the LLM reads them, tokenised once however many batches ask."""
    if not answers:
        raise DataError("Got no answers to score; wanted at least one.")
    known = _ANSWER_SETS.setdefault(reader.processor, {})
    key = tuple(as_list(answers, "answers"))
    if key not in known:
        rows = reader.processor.answer_ids(answers)
        while len(known) >= ANSWER_SETS:
            del known[next(iter(known))]
        known[key] = AnswerSet(rows, build_trie(rows))
    return known[key]


def _splice(
    reader: PrefixReader, texts: Sequence[str], prompts: Sequence[str] | None, max_source_tokens: int, *, room: int
) -> Spliced:
    """Return what the LLM reads before the answers; `room` is how many positions may follow."""
    reader.eval()
    texts = as_list(texts, "texts")
    prompts = None if prompts is None else as_list(prompts, "prompts")
    inputs = reader.processor(texts, prompts=prompts, max_source_tokens=max_source_tokens).to(reader.device)
    spliced = splice(reader.prefix_pieces(inputs))
    check_length(reader.llm, spliced.mask_BT.shape[1] + room)
    return spliced


def _plan(reader: PrefixReader, spliced: Spliced, known: AnswerSet) -> tuple[bool, list[AnswerSet], int]:
    """Return whether the answers are read as a trie, in which parts, and of how many texts at most at once.

    Fewer texts at once cost nothing; parts take a pass each, so they are for answers too many for one text.
    """
    positions = max(1, MAX_SCORED_LOGITS // reader.llm.config.get_text_config().vocab_size)
    longest = max(map(len, known.rows))
    size = max(1, positions // longest)
    some = [known.rows[start : start + size] for start in range(0, len(known.rows), size)]
    divided = [known] if len(some) == 1 else [AnswerSet(rows, build_trie(rows)) for rows in some]
    parts = [known] if len(known.trie.tokens) < positions else divided
    tries = answer_passes.takes_tries(reader, spliced, max(parts, key=lambda part: len(part.trie.tokens)))
    if not tries:  # copies take more positions
        parts = divided
    a_text = max(len(part.trie.tokens) + 1 if tries else len(part.rows) * longest for part in parts)
    return tries, parts, max(1, positions // a_text)


def _chunks(spliced: Spliced, max_rows: int) -> Iterator[tuple[list[int], Spliced]]:
    """Yield rows of like length with their numbers, so that the LLM reads little padding."""
    lengths = spliced.mask_BT.sum(dim=1).tolist()
    for alike in like_length(lengths, spliced.mask_BT.device.type):
        for start in range(0, len(alike), max_rows):
            rows = alike[start : start + max_rows]
            rows_R = torch.tensor(rows, device=spliced.mask_BT.device)
            longest = max(lengths[row] for row in rows)
            yield rows, Spliced(*(part[rows_R, -longest:] for part in spliced))


def _score_after(
    reader: PrefixReader, spliced: Spliced, prefix: Read, parts: list[AnswerSet], *, tries: bool
) -> Tensor:
    """Score the parts one after the other; the prefix's cache is consumed."""
    score = answer_passes.score_trie if tries else answer_passes.score_copies
    columns = []
    for number, part in enumerate(parts, start=1):
        cache = prefix.cache if number == len(parts) else copy.deepcopy(prefix.cache)
        columns.append(score(reader, spliced, prefix._replace(cache=cache), part))
    return torch.cat(columns, dim=1).cpu()
