"""Translation ranking of bags of tokens: refines the SVD embeddings before any layer exists.

A bag is the mean of RMS-normed embeddings, which is what the encoder computes while its
layers are still the identity. A step costs a hundredth of the encoder's, so the lexicon of
27 languages is learned here and the layers start from it. Three kinds of steps: translation pairs; the two parts
of an English document; the two parts of a document of one other language.

A second, shorter run also learns how much each piece counts: its weight, from the smooth inverse frequency of Arora et
al. (2017) on. It becomes the length of the piece's embedding, which T5's residual stream carries through all layers.
Shapes: P pairs, U different pieces of a batch, V pieces, E width.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pretraining.letters import Grams, letter_grams
from pretraining.made import Made, is_made, of_arrays, of_text, save_array
from pretraining.optimiser import PlainState
from pretraining.pairs import CODES, Lines, PairSampler, Spans
from pretraining.resume import Progress

SMOOTHING = 1e-3
"""a of the smooth inverse frequency."""
SAVE_EVERY = 1000
"""Steps between two writes of what a stopped training goes on from."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BagPlan:
    """Training of the embeddings as bags."""

    steps: int = 10_000
    """Optimiser updates."""
    pairs: int = 768
    english_share: float = 0.2
    """Share of steps on the parts of English documents."""
    others_share: float = 0.1
    """Share of steps on the parts of another language's documents."""
    rate: float = 5e-3
    temperature: float = 0.05
    parts_temperature: float = 0.15
    """Of the parts of documents, which have less in common than translations."""
    dropped_share: float = 0.2
    """Share of tokens left out of a bag, so that no single word decides."""
    max_tokens: int = 128
    """Tokens of a bag."""
    seed: int = 0


WEIGHTS_PLAN = BagPlan(steps=6000, rate=3e-3, english_share=0.3)
"""Of the second run, which learns the weights too."""


def train_bag(lines: Lines, embeddings_VE: np.ndarray, pieces: list[str], plan: BagPlan, out: Path) -> np.ndarray:
    """Trains the [V, E] embeddings once into `out`, overall RMS 1, and loads them; their lengths mean nothing yet.

    A training that was stopped goes on from what it last wrote beside `out`, and ends with the same embeddings.
    """
    made = _made(lines, embeddings_VE, plan)
    made["inputs"]["pieces"] = of_text("\n".join(pieces))
    if not is_made("bags", out, made):
        progress = Progress(out.with_suffix(".progress"), every=SAVE_EVERY, plan=made)
        table = Table(torch.from_numpy(embeddings_VE), letter_grams(pieces))
        _save(out, _run(lines, table, plan, progress).numpy())
        progress.finish()
    return np.load(out)


def train_weights(lines: Lines, embeddings_VE: np.ndarray, plan: BagPlan, out: Path) -> np.ndarray:
    """Trains [V, E] embeddings whose lengths say how much each piece counts, once into `out`, overall RMS 1.

    Goes on after a stop as `train_bag` does.
    """
    made = _made(lines, embeddings_VE, plan)
    if not is_made("weights of pieces", out, made):
        progress = Progress(out.with_suffix(".progress"), every=SAVE_EVERY, plan=made)
        weights_V = torch.from_numpy(inverse_frequency(lines, len(embeddings_VE)))
        table = Table(torch.from_numpy(embeddings_VE), weights_V=weights_V)
        _save(out, _run(lines, table, plan, progress).numpy())
        progress.finish()
    return np.load(out)


def _made(lines: Lines, embeddings_VE: np.ndarray, plan: BagPlan) -> Made:
    return {"plan": asdict(plan), "inputs": {"lines": of_arrays(*lines), "embeddings": of_arrays(embeddings_VE)}}


def _save(out: Path, trained_VE: np.ndarray) -> None:
    save_array(out, trained_VE / np.sqrt((trained_VE**2).mean()))


def inverse_frequency(lines: Lines, vocabulary: int) -> np.ndarray:
    """Weights a / (a + p), p a piece's share of the tokens in the language that uses it most; float32."""
    lang_of_token = np.repeat(lines.langs_N, np.diff(lines.starts_N))
    share_V = np.zeros(vocabulary)
    for lang in np.unique(lines.langs_N):
        counts_V = np.bincount(lines.tokens[lang_of_token == lang], minlength=vocabulary)
        share_V = np.maximum(share_V, counts_V / counts_V.sum())
    return (SMOOTHING / (SMOOTHING + share_V)).astype(np.float32)


class Table:
    """Embeddings of pieces: each one's own vector, plus the mean of its n-grams' vectors; of its weight as length."""

    def __init__(self, embeddings_VE: Tensor, grams: Grams | None = None, weights_V: Tensor | None = None) -> None:
        # Unit RMS a row, so that one rate suits frequent and rare pieces.
        self.own_VE = torch.nn.Parameter(functional.rms_norm(embeddings_VE, embeddings_VE.shape[-1:]))
        self.grams = grams
        self.trained = [self.own_VE]
        if grams is not None:
            self.grams_GE = torch.nn.Parameter(torch.zeros(grams.count, embeddings_VE.shape[-1]))
            self.trained.append(self.grams_GE)
        self.log_weights_V = None if weights_V is None else torch.nn.Parameter(weights_V.log())
        if self.log_weights_V is not None:
            self.trained.append(self.log_weights_V)

    def rows(self, pieces_U: Tensor) -> Tensor:
        """The [U, E] embeddings of some pieces: of unit RMS, or of their weight."""
        rows_UE = self._own_and_grams(pieces_U)
        rows_UE = functional.rms_norm(rows_UE, rows_UE.shape[-1:])
        return rows_UE if self.log_weights_V is None else rows_UE * self.log_weights_V[pieces_U, None].exp()

    def trained_rows(self) -> Tensor:
        """The [V, E] embeddings of all pieces; of unit RMS only with weights, which are then their lengths."""
        pieces_V = torch.arange(len(self.own_VE))
        return self._own_and_grams(pieces_V) if self.log_weights_V is None else self.rows(pieces_V)

    def _own_and_grams(self, pieces_U: Tensor) -> Tensor:
        if self.grams is None:
            return self.own_VE[pieces_U]
        starts_V, pieces = self.grams.starts_V, pieces_U.numpy()
        flat, offsets_U = ragged(starts_V[pieces], starts_V[pieces + 1] - starts_V[pieces])
        ids = torch.from_numpy(self.grams.ids[flat])
        shared_UE = functional.embedding_bag(ids, self.grams_GE, torch.from_numpy(offsets_U), mode="mean")
        return self.own_VE[pieces_U] + shared_UE


def ragged(begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of all members of runs that begin at `begins`, and where each run begins among them."""
    offsets = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(offsets - begins, lengths), offsets


def _run(lines: Lines, table: Table, plan: BagPlan, progress: Progress) -> Tensor:
    rng = np.random.default_rng(plan.seed)
    sampler = PairSampler(lines, seed=plan.seed)
    adam = torch.optim.Adam(table.trained, lr=plan.rate, betas=(0.9, 0.99), fused=True)
    state = PlainState(adam)
    begun, record = progress.load(state)
    losses: dict[str, list[float]] = defaultdict(list, record.get("losses", {}))
    if begun:  # to draw what is done once more takes half a minute
        rng.bit_generator.state, sampler.rng.bit_generator.state = record["rng"], record["sampler"]
    for step in range(begun + 1, plan.steps + 1):
        for group in adam.param_groups:
            group["lr"] = plan.rate * min(1, step / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps)))
        kind, temperature, sides = _draw(sampler, rng, plan)
        bags = [functional.normalize(_bag(lines, table, side, plan, rng), dim=-1) for side in sides]
        scores_PP = bags[0] @ bags[1].T / temperature
        target_P = torch.arange(len(scores_PP))
        loss = (functional.cross_entropy(scores_PP, target_P) + functional.cross_entropy(scores_PP.T, target_P)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses[kind].append(loss.item())
        if step % 100 == 0:
            log.info("bag step %d %s", step, {k: round(float(np.mean(v)), 3) for k, v in sorted(losses.items())})
            losses.clear()
        drawn = {"rng": rng.bit_generator.state, "sampler": sampler.rng.bit_generator.state}
        progress.save(step, state, {"losses": losses, **drawn})
    with torch.no_grad():
        return table.trained_rows()


def _draw(sampler: PairSampler, rng: np.random.Generator, plan: BagPlan) -> tuple[str, float, tuple[Spans, Spans]]:
    """What a step is on, its temperature, and its pairs."""
    at = rng.random()
    if at < plan.english_share:
        return "English", plan.parts_temperature, sampler.splits(plan.pairs, CODES.index("en"))
    if at < plan.english_share + plan.others_share:
        lang = sampler.other_language(at_least=plan.pairs // 8)
        return "others", plan.parts_temperature, sampler.splits(plan.pairs, lang)
    return "translations", plan.temperature, sampler.translations(plan.pairs)


def _bag(lines: Lines, table: Table, spans: Spans, plan: BagPlan, rng: np.random.Generator) -> Tensor:
    """[P, E] sums over the kept tokens of each span."""
    places, offsets_P = ragged(spans.begins_P, np.minimum(spans.lengths_P, plan.max_tokens))
    pieces_U, tokens = torch.unique(torch.from_numpy(lines.tokens[places].astype(np.int64)), return_inverse=True)
    kept = torch.from_numpy((rng.random(len(tokens)) > plan.dropped_share).astype(np.float32))
    offsets_P = torch.from_numpy(offsets_P)
    return functional.embedding_bag(tokens, table.rows(pieces_U), offsets_P, mode="sum", per_sample_weights=kept)
