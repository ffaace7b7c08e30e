"""Translation ranking of bags of tokens: refines the SVD embeddings before any layer exists.

A bag is the mean of RMS-normed embeddings, which is what the encoder computes while its
layers are still the identity. A step costs a hundredth of the encoder's, so the lexicon of
27 languages is learned here and the layers start from it.
Shapes: P pairs, V pieces, E width.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pretraining.pairs import MAX_LINE_TOKENS, Lines, PairSampler

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BagPlan:
    """Training of the embeddings as bags."""

    steps: int = 6000
    """Optimiser updates."""
    pairs: int = 768
    halves_share: float = 0.25
    """Share of pairs that are two halves of one English passage."""
    rate: float = 5e-3
    temperature: float = 0.05
    dropped_share: float = 0.2
    """Share of tokens left out of a bag, so that no single word decides."""
    seed: int = 0


def train_bag(lines: Lines, embeddings_VE: np.ndarray, plan: BagPlan, out: Path, *, eos: int) -> np.ndarray:
    """Trains the [V, E] embeddings once into `out`, overall RMS 1, and loads them."""
    if not out.exists():
        trained_VE = _run(lines, torch.from_numpy(embeddings_VE), plan, eos).numpy()
        np.save(out, trained_VE / np.sqrt((trained_VE**2).mean()))
    return np.load(out)


def _run(lines: Lines, table_VE: Tensor, plan: BagPlan, eos: int) -> Tensor:
    rng = np.random.default_rng(plan.seed)
    sampler = PairSampler(
        lines, pairs=plan.pairs, monolingual=0, halves_share=plan.halves_share, eos=eos, seed=plan.seed
    )
    # Unit RMS a row, so that one rate suits frequent and rare pieces.
    table_VE = torch.nn.Parameter(functional.rms_norm(table_VE, table_VE.shape[-1:]))
    adam = torch.optim.Adam([table_VE], lr=plan.rate, betas=(0.9, 0.99))
    target_P = torch.arange(plan.pairs)
    total = 0.0
    for step in range(1, plan.steps + 1):
        for group in adam.param_groups:
            group["lr"] = plan.rate * min(1, step / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps)))
        pairs_P2 = sampler.draw_pairs(plan.pairs)
        normed_VE = functional.rms_norm(table_VE, table_VE.shape[-1:])
        bags = [functional.normalize(_bag(lines, normed_VE, side, plan, rng), dim=-1) for side in pairs_P2.T]
        scores_PP = bags[0] @ bags[1].T / plan.temperature
        loss = (functional.cross_entropy(scores_PP, target_P) + functional.cross_entropy(scores_PP.T, target_P)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        total += loss.item()
        if step % 100 == 0:
            log.info("bag step %d loss %.3f", step, total / 100)
            total = 0.0
    return table_VE.detach()


def _bag(lines: Lines, normed_VE: Tensor, chosen_P: np.ndarray, plan: BagPlan, rng: np.random.Generator) -> Tensor:
    """[P, E] means over the kept tokens of each chosen line."""
    starts_P = lines.starts_N[chosen_P]
    lengths_P = np.minimum(lines.starts_N[chosen_P + 1] - starts_P, MAX_LINE_TOKENS)
    begins_P = np.cumsum(lengths_P) - lengths_P
    positions = np.arange(lengths_P.sum()) - np.repeat(begins_P - starts_P, lengths_P)
    tokens = torch.from_numpy(lines.tokens[positions].astype(np.int64))
    kept = torch.from_numpy((rng.random(len(tokens)) > plan.dropped_share).astype(np.float32))
    offsets = torch.from_numpy(begins_P)
    return functional.embedding_bag(tokens, normed_VE, offsets, mode="sum", per_sample_weights=kept)
