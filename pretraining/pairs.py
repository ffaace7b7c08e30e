"""Tokenised lines in one flat array, and batches of translation pairs drawn from it.

Shapes: N lines, P pairs a batch, M monolingual lines a batch, T tokens of the longest line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pretraining.corpus import read_json_lines
from pretraining.languages import LANGUAGES, NON_ENGLISH

CODES = tuple(LANGUAGES)
SOURCES = ("ntrex", "flores_v1", "tatoeba", "xquad", "storybooks", "course_docs", "halves", "documents")
SOURCE_WEIGHTS = {"course_docs": 0.50, "ntrex": 0.25, "flores_v1": 0.12, "tatoeba": 0.10, "xquad": 0.03}
"""How often a pair of a language comes from each source, among those that have it."""
STORED_TOKENS = 96
"""Tokens kept of a line; the SVD counts them all."""
MAX_LINE_TOKENS = 64
"""Tokens of a line in a training batch."""


class Lines(NamedTuple):
    """N token lists without `</s>`: line n is `tokens[starts[n]:starts[n + 1]]`."""

    tokens: np.ndarray
    starts_N: np.ndarray
    rows_N: np.ndarray
    langs_N: np.ndarray
    sources_N: np.ndarray

    def tokens_of(self, line: int) -> np.ndarray:
        """The piece ids of one line."""
        return self.tokens[self.starts_N[line] : self.starts_N[line + 1]]


def tokenise_lines(
    corpus: tuple[Path, Path], tokenizer: PreTrainedTokenizerBase, out: Path, *, max_documents: int = 12_000
) -> Lines:
    """Tokenises all rows, halves of English passages and documents once; loads the arrays.

    The two halves of a passage make a row of source `halves`: they share their topic.
    At most `max_documents` documents of a language are kept (a fixed stride of them).
    """
    if not out.exists():
        lines = [*_row_lines(corpus[0]), *_document_lines(corpus[1], max_documents)]
        starts, kept = [0], []
        for begin in range(0, len(lines), 20_000):
            texts = [text for *_, text in lines[begin : begin + 20_000]]
            for ids in tokenizer(texts, add_special_tokens=False).input_ids:
                kept.append(np.asarray(ids[:STORED_TOKENS], dtype=np.uint16))
                starts.append(starts[-1] + len(kept[-1]))
        sources, rows, langs, _ = zip(*lines, strict=True)
        np.savez(
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


def _document_lines(path: Path, max_documents: int) -> Iterator[tuple[str, int, str, str]]:
    """Halves as rows numbered from 1,000,000; documents as rows numbered from 2,000,000."""
    by_lang: dict[str, list[str]] = defaultdict(list)
    half_row = 1_000_000
    for record in read_json_lines(path):
        lang, text = record["lang"], record["text"].replace("\n", " ")
        by_lang[lang].append(text[:800])
        if lang == "en" and record["source"] in ("mlqa", "tydiqa", "xquad", "books") and len(text) > 300:
            middle = text.find(". ", len(text) // 2)
            if middle > 0:
                yield "halves", half_row, "en", text[: middle + 1][-500:]
                yield "halves", half_row, "en", text[middle + 2 :][:500]
                half_row += 1
    row = 2_000_000
    for lang, texts in by_lang.items():
        for text in texts[:: max(1, len(texts) // max_documents)]:
            yield "documents", row, lang, text
            row += 1


class Batch(NamedTuple):
    """2 P + M lines: English sides, their partners, then monolingual lines."""

    ids_BT: Tensor
    mask_BT: Tensor
    pairs: int


class PairSampler:
    """Draws batches in which each language, then each source, has its share.

    English stands on one side of every pair and the partners mix all languages, so the
    language of a line never tells which partner is right. Lines of a batch are of
    similar length, which saves padding and makes length no clue either.
    """

    def __init__(self, lines: Lines, *, pairs: int, monolingual: int, halves_share: float, eos: int, seed: int) -> None:
        self.lines, self.pairs, self.monolingual, self.eos = lines, pairs, monolingual, eos
        self.halves_share = halves_share
        self.rng = np.random.default_rng(seed)
        self.pools = self._index()
        self.shares = self._pool_shares()
        is_document = lines.sources_N == SOURCES.index("documents")
        self.documents = [np.flatnonzero(is_document & (lines.langs_N == i)) for i in range(len(CODES))]
        self.documents = [pool for pool in self.documents if len(pool)]

    def _index(self) -> dict[tuple[str, str], np.ndarray]:
        """From (source, language) to the [pairs, 2] line numbers of English and partner."""
        lines, english = self.lines, CODES.index("en")
        pools: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        english_of_row: dict[int, int] = {}
        for n in np.flatnonzero(lines.langs_N == english):
            row = int(lines.rows_N[n])
            if row in english_of_row:
                pools["halves", "en"].append((english_of_row[row], n))
            english_of_row[row] = n
        for n in np.flatnonzero(lines.langs_N != english):
            if (partner := english_of_row.get(int(lines.rows_N[n]))) is not None:
                source = SOURCES[lines.sources_N[n]]
                pools[source, CODES[lines.langs_N[n]]].append((partner, n))
        return {key: np.array(value) for key, value in pools.items()}

    def _pool_shares(self) -> np.ndarray:
        """Probability of each pool: languages alike, sources of a language by weight."""
        shares = np.zeros(len(self.pools))
        for at, (source, lang) in enumerate(self.pools):
            if source == "halves":
                shares[at] = self.halves_share
            else:
                present = sum(SOURCE_WEIGHTS[s] for s in SOURCE_WEIGHTS if (s, lang) in self.pools)
                shares[at] = (1 - self.halves_share) / len(NON_ENGLISH) * SOURCE_WEIGHTS[source] / present
        return shares / shares.sum()

    def draw_pairs(self, count: int) -> np.ndarray:
        """[count, 2] line numbers: English, partner."""
        chosen = self.rng.choice(len(self.shares), size=count, p=self.shares)
        pools = list(self.pools.values())
        return np.array([pools[c][self.rng.integers(len(pools[c]))] for c in chosen])

    def batches(self, *, group: int = 8) -> Iterator[Batch]:
        """Endless batches, `group` drawn at once and sorted by length among themselves."""
        lengths_N = np.diff(self.lines.starts_N)
        while True:
            pairs = self.draw_pairs(self.pairs * group)
            noisy = lengths_N[pairs].sum(1) * self.rng.uniform(0.9, 1.1, len(pairs))
            pairs = pairs[np.argsort(noisy)].reshape(group, self.pairs, 2)
            documents = np.array(
                [
                    self.rng.choice(self.documents[self.rng.integers(len(self.documents))])
                    for _ in range(self.monolingual * group)
                ],
                dtype=np.int64,
            )
            documents = documents[np.argsort(lengths_N[documents])].reshape(group, self.monolingual)
            for g in self.rng.permutation(group):
                yield self._collate(np.concatenate([pairs[g, :, 0], pairs[g, :, 1], documents[g]]))

    def _collate(self, chosen: np.ndarray) -> Batch:
        token_lists = [self.lines.tokens_of(n)[:MAX_LINE_TOKENS] for n in chosen]
        longest = max(map(len, token_lists)) + 1
        ids_BT = np.zeros((len(chosen), longest), dtype=np.int64)
        for row, tokens in enumerate(token_lists):
            ids_BT[row, : len(tokens)] = tokens
            ids_BT[row, len(tokens)] = self.eos
        ids = torch.from_numpy(ids_BT)
        lengths_B1 = torch.tensor([[len(tokens) + 1] for tokens in token_lists])
        return Batch(ids, (torch.arange(longest) < lengths_B1).long(), self.pairs)
