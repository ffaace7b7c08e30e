"""What pieces of different scripts have in common: the letters they sound like.

A piece is written in Latin letters, and its n-grams of letters are shared with every other piece that has them, as in
fastText (Bojanowski et al. 2017), but over scripts: a loanword or a name learned in one language helps in the others.
The n-grams serve training alone: in the end each piece's share of them is added to its own embedding.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from anyascii import anyascii

SIZES = (3, 4)


class Grams(NamedTuple):
    """The n-grams of piece v are `ids[starts_V[v]:starts_V[v + 1]]`."""

    ids: np.ndarray
    starts_V: np.ndarray
    count: int
    """How many different n-grams there are."""


def letter_grams(pieces: list[str], *, at_least: int = 2) -> Grams:
    """List each piece's n-grams, and the whole piece as one; those of fewer than `at_least` pieces are left out."""
    of_piece = [sorted(_grams(piece)) for piece in pieces]
    pieces_with = Counter(gram for grams in of_piece for gram in grams)
    number = {gram: at for at, gram in enumerate(sorted(g for g, count in pieces_with.items() if count >= at_least))}
    kept = [[number[gram] for gram in grams if gram in number] for grams in of_piece]
    starts_V = np.cumsum([0, *map(len, kept)])
    return Grams(np.array([gram for grams in kept for gram in grams], dtype=np.int64), starts_V, len(number))


def _grams(piece: str) -> set[str]:
    if piece.startswith("<"):  # special pieces
        return set()
    begins_word = piece.startswith("▁")
    letters = anyascii(piece.replace("▁", " ")).lower().strip()
    if not letters:
        return set()
    marked = "^" + letters if begins_word else letters
    return {marked} | {marked[at : at + size] for size in SIZES for at in range(len(marked) - size + 1)}
