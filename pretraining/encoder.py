"""Trains the encoder: an mT5 encoder stack by translation ranking and masked tokens.

Ranking: LaBSE (Feng et al. 2022), in-batch contrast of mean-pooled pairs, both directions.
Differs from the paper: temperature 1/20 without margin, masked inputs on both sides, and
token embeddings that start from `embeddings.py` and `bag.py`.
Shapes: B lines (P English, P partners, M monolingual), T tokens, E width, K masked, V pieces.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MT5Config, MT5EncoderModel, PreTrainedTokenizerBase

from pretraining.optimiser import MasterOptimiser
from pretraining.pairs import Batch, Lines, PairSampler
from pretraining.tokenizer import MASK

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """Size and training of the encoder."""

    num_layers: int = 8
    width: int = 256
    num_heads: int = 4
    head_width: int = 32
    inner_width: int = 448
    steps: int = 280
    """Optimiser updates."""
    pairs: int = 96
    """Translation pairs a batch."""
    monolingual: int = 16
    """Lines a batch that only the masked-token loss sees."""
    halves_share: float = 0.15
    """Share of pairs that are two halves of one English passage."""
    rate: float = 1.5e-3
    embedding_factor: float = 0.15
    """The embeddings' rate as a share of `rate`: masked tokens pull at every piece in every step."""
    temperature: float = 0.05
    masked_share: float = 0.12
    masked_weight: float = 0.15
    """Weight of the masked-token loss beside the ranking loss."""
    seed: int = 0


def new_encoder(plan: EncoderPlan, embeddings_VE: np.ndarray) -> MT5EncoderModel:
    """An untrained encoder over given token embeddings; each layer starts almost as identity."""
    torch.manual_seed(plan.seed)
    config = MT5Config(
        vocab_size=embeddings_VE.shape[0],
        d_model=plan.width,
        d_kv=plan.head_width,
        d_ff=plan.inner_width,
        num_heads=plan.num_heads,
        num_layers=plan.num_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        architectures=["MT5EncoderModel"],
    )
    model = MT5EncoderModel(config)
    with torch.no_grad():
        model.shared.weight.copy_(torch.from_numpy(embeddings_VE))
        for name, parameter in model.named_parameters():
            if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                parameter.mul_(0.2)
    return model


def _use_fused_kernels(model: nn.Module) -> None:
    """Swaps the tanh GELU and the RMS norms for PyTorch's own, equal and several times faster."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif type(child).__name__ in ("T5LayerNorm", "MT5LayerNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=child.weight.dtype)
                norm.weight = child.weight
                setattr(module, name, norm)


def mask_tokens(
    ids_BT: Tensor, mask_BT: Tensor, *, share: float, mask_id: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hides `share` of the tokens (a tenth of them by a random piece instead of the mask).

    Returns:
        The corrupted ids and the [B, T] boolean positions hidden; special ids 0-3 never are.
    """
    hidden_BT = (torch.rand(ids_BT.shape, generator=generator) < share) & (ids_BT > mask_id) & mask_BT.bool()
    replaced_BT = torch.where(
        torch.rand(ids_BT.shape, generator=generator) < 0.1,
        torch.randint(mask_id + 1, vocabulary, ids_BT.shape, generator=generator),
        mask_id,
    )
    return torch.where(hidden_BT, replaced_BT, ids_BT), hidden_BT


def encoder_losses(
    model: MT5EncoderModel, batch: Batch, plan: EncoderPlan, *, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Ranking loss, masked-token loss, and the share of pairs ranked first."""
    table_VE = model.shared.weight
    ids_BT, hidden_BT = mask_tokens(
        batch.ids_BT,
        batch.mask_BT,
        share=plan.masked_share,
        mask_id=mask_id,
        vocabulary=len(table_VE),
        generator=generator,
    )
    states_BTE = model(input_ids=ids_BT, attention_mask=batch.mask_BT).last_hidden_state
    logits_KV = (states_BTE[hidden_BT] * plan.width**-0.5) @ table_VE.T
    masked = functional.cross_entropy(logits_KV.float(), batch.ids_BT[hidden_BT])

    p = batch.pairs
    mask_BT1 = batch.mask_BT[: 2 * p, :, None].to(states_BTE.dtype)
    pooled_BE = functional.normalize((states_BTE[: 2 * p] * mask_BT1).sum(1).float(), dim=-1)
    scores_PP = pooled_BE[:p] @ pooled_BE[p:].T / plan.temperature
    target_P = torch.arange(p)
    ranking = (functional.cross_entropy(scores_PP, target_P) + functional.cross_entropy(scores_PP.T, target_P)) / 2
    return ranking, masked, float((scores_PP.argmax(1) == target_P).float().mean())


def train_encoder(
    lines: Lines, tokenizer: PreTrainedTokenizerBase, embeddings_VE: np.ndarray, plan: EncoderPlan, out: Path
) -> MT5EncoderModel:
    """Trains once into `out` (bf16 weights, `training.json` with the figures) and loads it."""
    if not (out / "config.json").exists():
        model = new_encoder(plan, embeddings_VE).to(torch.bfloat16)
        fast = copy.deepcopy(model).train()
        _use_fused_kernels(fast)
        history = _run(fast, lines, tokenizer, plan)
        model.load_state_dict(fast.state_dict())
        model.eval().save_pretrained(out)
        figures = {"plan": asdict(plan), "history": history}
        (out / "training.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return MT5EncoderModel.from_pretrained(out, dtype=torch.float32).eval()


def _run(model: MT5EncoderModel, lines: Lines, tokenizer: PreTrainedTokenizerBase, plan: EncoderPlan) -> list[dict]:
    sampler = PairSampler(
        lines,
        pairs=plan.pairs,
        monolingual=plan.monolingual,
        halves_share=plan.halves_share,
        eos=tokenizer.eos_token_id,
        seed=plan.seed,
    )
    optimiser = MasterOptimiser(
        model,
        rate=plan.rate,
        steps=plan.steps,
        warmup_steps=plan.steps // 20,
        embedding_factor=plan.embedding_factor,
    )
    generator = torch.Generator().manual_seed(plan.seed)
    mask_id = tokenizer.convert_tokens_to_ids(MASK)
    history, sums, tokens, started = [], np.zeros(3), 0, time.monotonic()
    report_every = max(1, plan.steps // 40)
    for step, batch in zip(range(1, plan.steps + 1), sampler.batches(), strict=False):
        ranking, masked, first = encoder_losses(model, batch, plan, mask_id=mask_id, generator=generator)
        (ranking + plan.masked_weight * masked).backward()
        optimiser.step()
        sums += (ranking.item(), masked.item(), first)
        tokens += int(batch.mask_BT.sum())
        if step % report_every == 0:
            row = dict(zip(("ranking", "masked", "first"), (sums / report_every).round(3).tolist(), strict=True))
            row |= {"step": step, "tokens": tokens, "seconds": round(time.monotonic() - started, 1)}
            history.append(row)
            log.info("encoder %s", row)
            sums[:] = 0
    return history
