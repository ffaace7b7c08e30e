"""Initial token embeddings: the SVD of a token-by-row matrix, all languages at once.

Tokens that occur in the same aligned rows get similar vectors whatever their language
(Sahlgren's random indexing of aligned text; Levy et al. 2017 on sentence ids).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from pretraining.made import is_made, of_arrays, save_array
from pretraining.pairs import SOURCES, Lines

UNUSED_SOURCES = ("documents", "tatoeba")
"""Rows of one or two languages mostly: their dimensions tell languages apart, not meanings."""

log = logging.getLogger(__name__)


def build_embeddings(lines: Lines, out: Path, *, vocabulary: int, width: int, seed: int) -> np.ndarray:
    """Computes the [vocabulary, width] float32 embeddings once, RMS 1 overall."""
    plan = {"vocabulary": vocabulary, "width": width, "seed": seed}
    if not is_made("SVD", out, {"plan": plan, "inputs": {"lines": of_arrays(*lines)}}):
        weights = _ppmi(_token_row_counts(lines, vocabulary))
        left, values, _ = randomized_svd(weights, width, n_iter=4, random_state=seed)
        vectors_VE = left * np.sqrt(values)
        rms_V = np.sqrt((vectors_VE**2).mean(1))
        empty_V = rms_V < 1e-3 * np.median(rms_V)
        rng = np.random.default_rng(seed)
        vectors_VE[empty_V] = rng.normal(0, np.median(rms_V) * 0.3, (empty_V.sum(), width))
        vectors_VE *= 1 / np.sqrt((vectors_VE**2).mean())
        log.info("embeddings: %d of %d tokens never in a row", empty_V.sum(), vocabulary)
        save_array(out, vectors_VE.astype(np.float32))
    return np.load(out)


def _token_row_counts(lines: Lines, vocabulary: int) -> sparse.csr_matrix:
    """How many times a row of many languages holds a token, damped by log(1 + n)."""
    used = ~np.isin(lines.sources_N, [SOURCES.index(source) for source in UNUSED_SOURCES])
    lengths_N = np.diff(lines.starts_N)
    of_token = np.repeat(np.arange(len(lengths_N)), lengths_N)
    keep = used[of_token]
    _, columns = np.unique(lines.rows_N[of_token[keep]], return_inverse=True)
    tokens = lines.tokens[keep].astype(np.int64)
    shape = (vocabulary, columns.max() + 1)
    counts = sparse.coo_matrix((np.ones(len(tokens), np.float32), (tokens, columns)), shape).tocsr()
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    return counts


def _ppmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive pointwise mutual information of tokens and rows."""
    token_sums = np.asarray(counts.sum(1)).ravel()
    row_sums = np.asarray(counts.sum(0)).ravel()
    coordinates = counts.tocoo()
    expected = token_sums[coordinates.row] * row_sums[coordinates.col] / token_sums.sum()
    coordinates.data = np.maximum(0.0, np.log(coordinates.data / expected))
    weights = coordinates.tocsr()
    weights.eliminate_zeros()
    return weights.astype(np.float32)
