"""Trains the encoder: an mT5 encoder stack by translation ranking and masked tokens.

Ranking: LaBSE (Feng et al. 2022), in-batch contrast of mean-pooled pairs, both directions; of translations, and of the
two parts of English documents. Masked tokens: BERT (Devlin et al. 2019), read off the last layer.
Differs from LaBSE: the ranking reads a middle layer (in XLM-R and mT5 sentences of different languages are closest in
the middle, and the last layers serve the masked tokens; this encoder stands in for those); temperature 1/20 without
margin, masked inputs on both sides, and token embeddings that start from `embeddings.py` and `bag.py`.
Shapes: B lines (P lefts, P rights, M monolingual), T tokens, E width, K masked, V pieces.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MT5Config, MT5EncoderModel, PreTrainedTokenizerBase

from layerbridge.atomic import replace_text
from pretraining.made import is_made, of_arrays
from pretraining.optimiser import MasterOptimiser
from pretraining.pairs import Batch, Lines, PairSampler
from pretraining.resume import Progress, training_device
from pretraining.tokenizer import MASK, SPECIAL

log = logging.getLogger(__name__)

LOSSES = ("ranking", "parts", "masked")
SAVE_EVERY = 50
"""Steps between two writes of what a stopped training goes on from."""

Measure = Callable[[MT5EncoderModel], dict]
"""What is measured of the encoder along the way."""


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """Size and training of the encoder."""

    num_layers: int = 8
    width: int = 256
    num_heads: int = 4
    head_width: int = 32
    inner_width: int = 448
    steps: int = 100
    """Optimiser updates."""
    pairs: int = 80
    """Translation pairs a batch."""
    splits: int = 24
    """English documents a batch whose two parts are ranked among themselves."""
    windows: int = 8
    """Lines a batch with a translation pair each, for the masked tokens (XLM's translation language modelling)."""
    monolingual: int = 8
    """Lines a batch of one language each that only the masked-token loss sees."""
    ranked_layer: int = 5
    """The layer whose states the ranking reads."""
    rate: float = 5e-4
    embedding_factor: float = 0.15
    """The embeddings' rate as a share of `rate`: masked tokens pull at every piece in every step."""
    temperature: float = 0.05
    parts_temperature: float = 0.15
    parts_weight: float = 0.3
    """Weight of the ranking of parts beside that of translations."""
    masked_share: float = 0.15
    max_masked: int = 640
    """Masked tokens a batch whose loss is computed: over 44,000 pieces it is what a step spends most on."""
    masked_weight: float = 0.3
    """Weight of the masked-token loss beside the ranking of translations."""
    seed: int = 0


def new_encoder(plan: EncoderPlan, embeddings_VE: np.ndarray) -> MT5EncoderModel:
    """An untrained encoder over given token embeddings; each layer starts as the identity."""
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
        model.shared.weight[: len(SPECIAL)] *= 0.05  # they stand in every line and were in no bag
        for name, parameter in model.named_parameters():
            if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                parameter.zero_()
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
) -> dict[str, Tensor]:
    """The three losses, by the names of `LOSSES`, and the share of translations ranked `first`."""
    table_VE = model.shared.weight
    ids_BT, hidden_BT = mask_tokens(
        batch.ids_BT,
        batch.mask_BT,
        share=plan.masked_share,
        mask_id=mask_id,
        vocabulary=len(table_VE),
        generator=generator,
    )
    places_K = hidden_BT.flatten().nonzero().squeeze(1)
    if len(places_K) > plan.max_masked:
        places_K = places_K[torch.randperm(len(places_K), generator=generator)[: plan.max_masked]]
    device = table_VE.device
    ids_BT, places_K, attention_BT = ids_BT.to(device), places_K.to(device), batch.mask_BT.to(device)
    states = model(input_ids=ids_BT, attention_mask=attention_BT, output_hidden_states=True).hidden_states
    logits_KV = (states[-1].flatten(0, 1)[places_K] * plan.width**-0.5) @ table_VE.T
    masked = functional.cross_entropy(logits_KV.float(), batch.ids_BT.to(device).flatten()[places_K])

    pairs = batch.pairs
    ranked_BTE = states[plan.ranked_layer][: 2 * pairs]  # as they are: their lengths say how much each counts
    mask_BT1 = attention_BT[: 2 * pairs, :, None].to(ranked_BTE.dtype)
    pooled_BE = functional.normalize((ranked_BTE * mask_BT1).sum(1).float(), dim=-1)
    left_PE, right_PE = pooled_BE[:pairs], pooled_BE[pairs:]
    ranking, first = _ranking(left_PE[: plan.pairs], right_PE[: plan.pairs], plan.temperature)
    parts, _ = _ranking(left_PE[plan.pairs :], right_PE[plan.pairs :], plan.parts_temperature)
    return {"ranking": ranking, "parts": parts, "masked": masked, "first": first}


def _ranking(left_PE: Tensor, right_PE: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """In-batch contrast in both directions, and the share of lefts whose own right comes first."""
    scores_PP = left_PE @ right_PE.T / temperature
    target_P = torch.arange(len(scores_PP), device=scores_PP.device)
    loss = (functional.cross_entropy(scores_PP, target_P) + functional.cross_entropy(scores_PP.T, target_P)) / 2
    return loss, (scores_PP.argmax(1) == target_P).float().mean()


def train_encoder(
    lines: Lines,
    tokenizer: PreTrainedTokenizerBase,
    embeddings_VE: np.ndarray,
    plan: EncoderPlan,
    out: Path,
    *,
    measure: Measure | None = None,
) -> MT5EncoderModel:
    """Trains once into `out` (bf16 weights, `training.json` with the figures) and loads it.

    A training that was stopped goes on from what it last wrote beside `out`, and ends with the same weights. With
    `measure`, the encoder is measured in float32 at three points on the way and at the end: the learning curve, and
    what 16 bits cost.
    """
    made = {"plan": asdict(plan), "inputs": {"lines": of_arrays(*lines), "embeddings": of_arrays(embeddings_VE)}}
    if not is_made("encoder", out, made, last=out / "training.json"):
        device = training_device()
        model = new_encoder(plan, embeddings_VE).to(device, torch.bfloat16)
        fast = copy.deepcopy(model).train()
        _use_fused_kernels(fast)
        progress = Progress(out.with_suffix(".progress"), every=SAVE_EVERY, plan=made)
        figures = {"plan": asdict(plan)} | _run(fast, lines, tokenizer, plan, progress, measure)
        model.load_state_dict(fast.state_dict())
        model.cpu().eval().save_pretrained(out)
        replace_text(out / "training.json", json.dumps(figures, indent=1))
        progress.finish()
    return MT5EncoderModel.from_pretrained(out, dtype=torch.float32).eval()


def _run(
    model: MT5EncoderModel,
    lines: Lines,
    tokenizer: PreTrainedTokenizerBase,
    plan: EncoderPlan,
    progress: Progress,
    measure: Measure | None,
) -> dict:
    batches = PairSampler(lines, seed=plan.seed).batches(
        pairs=plan.pairs,
        splits=plan.splits,
        windows=plan.windows,
        monolingual=plan.monolingual,
        eos=tokenizer.eos_token_id,
    )
    optimiser = MasterOptimiser(
        model,
        rate=plan.rate,
        steps=plan.steps,
        warmup_steps=plan.steps // 20,
        embedding_factor=plan.embedding_factor,
    )
    generator = torch.Generator().manual_seed(plan.seed)
    begun, record = progress.load(optimiser, generator)
    record = record or {"history": [], "measured": [], "sums": {}, "tokens": 0, "seconds": 0.0}
    mask_id = tokenizer.convert_tokens_to_ids(MASK)
    started = time.monotonic() - record["seconds"]
    report_every = max(1, plan.steps // 40)
    for step, batch in islice(zip(range(1, plan.steps + 1), batches, strict=False), begun, None):
        losses = encoder_losses(model, batch, plan, mask_id=mask_id, generator=generator)
        (losses["ranking"] + plan.parts_weight * losses["parts"] + plan.masked_weight * losses["masked"]).backward()
        optimiser.step()
        record["sums"] = {name: record["sums"].get(name, 0.0) + float(loss.detach()) for name, loss in losses.items()}
        record["tokens"] += int(batch.mask_BT.sum())
        record["seconds"] = round(time.monotonic() - started, 1)
        if step % report_every == 0:
            row = {name: round(total / report_every, 3) for name, total in record["sums"].items()}
            row |= {"step": step, "tokens": record["tokens"], "seconds": record["seconds"]}
            record["history"].append(row)
            log.info("encoder %s", row)
            record["sums"] = {}
        if measure is not None and step in _looks(plan.steps):
            record["measured"].append(
                {"step": step, "tokens": record["tokens"]} | measure(_in_float32(model, optimiser))
            )
        progress.save(step, optimiser, record, generator)
    return {"history": record["history"], "measured": record["measured"]}


def _looks(steps: int) -> tuple[int, ...]:
    return (steps // 8, steps // 4, steps // 2, steps)


def _in_float32(model: MT5EncoderModel, optimiser: MasterOptimiser) -> MT5EncoderModel:
    """A copy with the master weights, before they are rounded to 16 bits."""
    exact = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        for parameter, master in zip(exact.parameters(), optimiser.masters, strict=True):
            parameter.copy_(master)
    return exact.cpu()
