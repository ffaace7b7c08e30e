"""Tokenised lines in one flat array, and batches of translation pairs drawn from it.

Shapes: N lines, P pairs a batch, M monolingual lines a batch, T tokens of the longest line.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pretraining.corpus import read_json_lines
from pretraining.languages import LANGUAGES, NON_ENGLISH
from pretraining.made import is_made, of_files, of_tokenizer, save_arrays

CODES = tuple(LANGUAGES)
SOURCES = ("ntrex", "flores_v1", "tatoeba", "xquad", "storybooks", "course_docs", "documents")
SOURCE_WEIGHTS = {"course_docs": 0.50, "ntrex": 0.25, "flores_v1": 0.12, "tatoeba": 0.10, "xquad": 0.03}
"""How often a pair of a language comes from each source, among those that have it."""
STORED_TOKENS = {"rows": 96, "documents": 256}
"""Tokens kept of a line; the SVD counts all that are kept."""
MAX_LINE_TOKENS = 64
"""Tokens of a line in a training batch."""
MAX_DOCUMENTS = {"en": 100_000}
MAX_DOCUMENTS_OTHERS = 25_000
"""Documents kept a language, long ones first."""
LONG_DOCUMENT_CHARS = 250
MIN_DOCUMENT_CHARS = 50
MIN_SPLIT_TOKENS = 12
"""Shorter documents are not parted in two."""
BOOKS_SHARE = 0.35
BALANCE = 0.3
"""A language's share of the monolingual lines is proportional to (its documents) ** this."""


class Lines(NamedTuple):
    """N token lists without `</s>`: line n is `tokens[starts[n]:starts[n + 1]]`."""

    tokens: np.ndarray
    starts_N: np.ndarray
    rows_N: np.ndarray
    """The aligned row; -1 of documents."""
    langs_N: np.ndarray
    sources_N: np.ndarray


@dataclass(frozen=True)
class Spans:
    """P runs of tokens of `Lines.tokens`."""

    begins_P: np.ndarray
    lengths_P: np.ndarray

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Begin and length, one span after the other."""
        return zip(self.begins_P.tolist(), self.lengths_P.tolist(), strict=True)

    def take(self, places: np.ndarray) -> Spans:
        """Return the spans at `places`."""
        return Spans(self.begins_P[places], self.lengths_P[places])


def tokenise_lines(corpus: tuple[Path, Path], tokenizer: PreTrainedTokenizerBase, out: Path, *, seed: int) -> Lines:
    """Tokenises all rows, and documents up to a number a language, once; loads the arrays."""
    inputs = {"corpus": of_files(*corpus), "tokenizer": of_tokenizer(tokenizer)}
    if not is_made("tokenised lines", out, {"plan": {"seed": seed}, "inputs": inputs}):
        lines = [*_row_lines(corpus[0]), *_document_lines(corpus[1], seed)]
        starts, kept = [0], []
        for begin in range(0, len(lines), 20_000):
            part = lines[begin : begin + 20_000]
            found = tokenizer([text for *_, text in part], add_special_tokens=False).input_ids
            for (source, *_), ids in zip(part, found, strict=True):
                limit = STORED_TOKENS["documents" if source == "documents" else "rows"]
                kept.append(np.asarray(ids[:limit], dtype=np.uint16))
                starts.append(starts[-1] + len(kept[-1]))
        sources, rows, langs, _ = zip(*lines, strict=True)
        save_arrays(
            out,
            tokens=np.concatenate(kept),
            starts_N=np.array(starts),
            rows_N=np.array(rows, dtype=np.int32),
            langs_N=np.array([CODES.index(lang) for lang in langs], dtype=np.int8),
            sources_N=np.array([SOURCES.index(source) for source in sources], dtype=np.int8),
        )
    with np.load(out) as arrays:
        return Lines(**{name: arrays[name] for name in Lines._fields})


def _row_lines(path: Path) -> Iterator[tuple[str, int, str, str]]:
    for row, record in enumerate(read_json_lines(path)):
        for lang, text in record["text"].items():
            yield record["source"], row, lang, text


def _document_lines(path: Path, seed: int) -> Iterator[tuple[str, int, str, str]]:
    """Documents of each language: all long ones first, as long as there is room."""
    rng = random.Random(seed)
    by_lang: dict[str, list[str]] = defaultdict(list)
    for record in read_json_lines(path):
        if record["source"] == "books" and rng.random() > BOOKS_SHARE:
            continue
        text = record["text"].replace("\n", " ")
        if len(text) >= MIN_DOCUMENT_CHARS:
            by_lang[record["lang"]].append(text[:1200])
    for lang, texts in sorted(by_lang.items()):
        rng.shuffle(texts)
        texts.sort(key=lambda text: len(text) <= LONG_DOCUMENT_CHARS)
        for text in texts[: MAX_DOCUMENTS.get(lang, MAX_DOCUMENTS_OTHERS)]:
            yield "documents", -1, lang, text


class Batch(NamedTuple):
    """2 P + M lines: left sides (English), their partners, then lines for the masked tokens alone."""

    ids_BT: Tensor
    mask_BT: Tensor
    pairs: int


class PairSampler:
    """Draws pairs in which each language, then each source, has its share.

    English stands on one side of every translation pair and the partners mix all languages, so the language of a line
    never tells which partner is right. The two parts of a split document are of one language in the whole batch, for
    the same reason.
    """

    def __init__(self, lines: Lines, *, seed: int) -> None:
        self.lines = lines
        self.rng = np.random.default_rng(seed)
        self.lengths_N = np.diff(lines.starts_N)
        self.pools = list(self._index().items())
        self.shares = self._pool_shares([key for key, _ in self.pools])
        is_document = lines.sources_N == SOURCES.index("documents")
        self.documents = [np.flatnonzero(is_document & (lines.langs_N == i)) for i in range(len(CODES))]
        is_long = self.lengths_N >= MIN_SPLIT_TOKENS
        self.splittable = [pool[is_long[pool]] for pool in self.documents]

    def _index(self) -> dict[tuple[str, str], np.ndarray]:
        """From (source, language) to the [pairs, 2] line numbers of English and partner."""
        lines, english = self.lines, CODES.index("en")
        pools: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        english_of_row: dict[int, int] = {}
        for n in np.flatnonzero((lines.langs_N == english) & (lines.rows_N >= 0)):
            english_of_row[int(lines.rows_N[n])] = n
        for n in np.flatnonzero((lines.langs_N != english) & (lines.rows_N >= 0)):
            if (partner := english_of_row.get(int(lines.rows_N[n]))) is not None:
                source = SOURCES[lines.sources_N[n]]
                pools[source, CODES[lines.langs_N[n]]].append((partner, n))
        return {key: np.array(value) for key, value in pools.items()}

    def _pool_shares(self, keys: list[tuple[str, str]]) -> np.ndarray:
        """Probability of each pool: languages alike, sources of a language by weight."""
        shares = np.zeros(len(keys))
        for at, (source, lang) in enumerate(keys):
            present = sum(SOURCE_WEIGHTS[s] for s in SOURCE_WEIGHTS if (s, lang) in keys)
            shares[at] = SOURCE_WEIGHTS[source] / present / len(NON_ENGLISH)
        return shares / shares.sum()

    def translations(self, count: int) -> tuple[Spans, Spans]:
        """`count` English lines and their partners in the other languages."""
        chosen = self.rng.choice(len(self.shares), size=count, p=self.shares)
        pools = [pool for _, pool in self.pools]
        pairs_P2 = np.array([pools[c][self.rng.integers(len(pools[c]))] for c in chosen])
        return self._whole(pairs_P2[:, 0]), self._whole(pairs_P2[:, 1])

    def splits(self, count: int, lang: int) -> tuple[Spans, Spans]:
        """First and second part of `count` documents (fewer, if there are not so many) of one language."""
        pool = self.splittable[lang]
        chosen_P = self.rng.choice(pool, size=min(count, len(pool)), replace=False)
        lengths_P = self.lengths_N[chosen_P]
        first_P = np.maximum(1, (lengths_P * self.rng.uniform(0.35, 0.65, len(chosen_P))).astype(int))
        begins_P = self.lines.starts_N[chosen_P]
        return Spans(begins_P, first_P), Spans(begins_P + first_P, lengths_P - first_P)

    def other_language(self, *, at_least: int) -> int:
        """A language but English, by its share, that has `at_least` documents to split."""
        sizes = np.array(
            [len(pool) if lang and len(pool) >= at_least else 0 for lang, pool in enumerate(self.splittable)]
        )
        weights = np.where(sizes > 0, sizes.astype(float) ** BALANCE, 0.0)
        return int(self.rng.choice(len(weights), p=weights / weights.sum()))

    def monolingual(self, count: int) -> Spans:
        """Documents, languages alike; a window of each, from anywhere in it."""
        present = [pool for pool in self.documents if len(pool)]
        chosen = np.array(
            [self.rng.choice(present[self.rng.integers(len(present))]) for _ in range(count)], dtype=np.int64
        )
        room = np.maximum(0, self.lengths_N[chosen] - MAX_LINE_TOKENS)
        begins = self.lines.starts_N[chosen] + (self.rng.random(count) * (room + 1)).astype(np.int64)
        return Spans(begins, np.minimum(self.lengths_N[chosen], MAX_LINE_TOKENS))

    def _whole(self, chosen_P: np.ndarray) -> Spans:
        return Spans(self.lines.starts_N[chosen_P], self.lengths_N[chosen_P])

    def batches(
        self, *, pairs: int, splits: int, windows: int, monolingual: int, eos: int, group: int = 8
    ) -> Iterator[Batch]:
        """Endless batches, `group` drawn at once and sorted by length among themselves: it saves padding.

        Args:
            pairs: translation pairs a batch.
            splits: split English documents a batch; they stand among the pairs.
            windows: lines a batch that hold both sides of a translation pair, for the masked tokens alone.
            monolingual: other lines a batch, for the masked tokens alone.
            eos: ends every line.
            group: batches drawn at once.
        """
        while True:
            english, partners = self.translations(pairs * group)
            firsts, seconds = self.splits(splits * group, CODES.index("en"))
            sides = [self._sorted(english, partners, group), self._sorted(firsts, seconds, group)]
            joined = self._sorted(*self.translations(windows * group), group)
            alone = self.monolingual(monolingual * group)
            order = np.argsort(alone.lengths_P, kind="stable").reshape(group, monolingual)
            for g in self.rng.permutation(group):
                lefts, rights = zip(*(side[g] for side in sides), strict=True)
                lists = [self._ids(span, eos) for part in (*lefts, *rights) for span in part]
                lists += [
                    [*self._ids(a, eos, half=True), *self._ids(b, eos, half=True)]
                    for a, b in zip(*joined[g], strict=True)
                ]
                lists += [self._ids(span, eos) for span in alone.take(order[g])]
                yield self._collate(lists, pairs + splits)

    def _sorted(self, left: Spans, right: Spans, group: int) -> list[tuple[Spans, Spans]]:
        noisy = (left.lengths_P + right.lengths_P) * self.rng.uniform(0.9, 1.1, len(left.lengths_P))
        order = np.argsort(noisy, kind="stable").reshape(group, -1)
        return [(left.take(places), right.take(places)) for places in order]

    def _ids(self, span: tuple[int, int], eos: int, *, half: bool = False) -> list[int]:
        """The ids of a span's first tokens, and `</s>`; `half`: as many as fit into half a line."""
        begin, length = span
        limit = MAX_LINE_TOKENS // 2 - 1 if half else MAX_LINE_TOKENS
        return [*self.lines.tokens[begin : begin + min(length, limit)].tolist(), eos]

    def _collate(self, lists: list[list[int]], pairs: int) -> Batch:
        ids_BT = np.zeros((len(lists), max(map(len, lists))), dtype=np.int64)
        for row, ids in enumerate(lists):
            ids_BT[row, : len(ids)] = ids
        lengths_B1 = np.array([[len(ids)] for ids in lists])
        mask_BT = np.arange(ids_BT.shape[1]) < lengths_B1
        return Batch(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT).long(), pairs)
