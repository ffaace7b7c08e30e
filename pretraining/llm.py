"""Trains the English LM: a small Llama on packed `<s> text </s>` pieces.

Shapes: B windows a batch, W tokens a window, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from layerbridge.atomic import replace_text
from pretraining.corpus import read_json_lines
from pretraining.made import is_made, of_arrays, of_files, of_tokenizer, save_arrays
from pretraining.optimiser import MasterOptimiser
from pretraining.resume import Progress, training_device

log = logging.getLogger(__name__)

BOOKS_SHARE = 0.2
"""Share of the book pieces that are kept: old fiction would drown the rest."""
SHORT_SOURCES = ("common_voice", "tatoeba", "wikiann", "ntrex")
SHORT_SHARE = 0.6
"""Share of the one-sentence documents that are kept, short as they are."""
SAVE_EVERY = 100
"""Steps between two writes of what a stopped training goes on from."""


@dataclass(frozen=True, kw_only=True)
class LlmPlan:
    """Size and training of the English LM."""

    num_layers: int = 4
    width: int = 256
    num_heads: int = 4
    num_key_value_heads: int = 2
    inner_width: int = 448
    window: int = 192
    """Tokens a training window; documents run on from one window to the next."""
    batch: int = 16
    steps: int = 2700
    """Optimiser updates."""
    rate: float = 3e-3
    held_out: float = 0.01
    """Share of the documents that is only measured on."""
    seed: int = 0


def new_llm(plan: LlmPlan, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """An untrained LM with tied embeddings."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        intermediate_size=plan.inner_width,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.num_heads,
        num_key_value_heads=plan.num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pack_documents(
    documents: Path, tokenizer: PreTrainedTokenizerBase, out: Path, *, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token streams of the training and the held-out documents, made once."""
    inputs = {"documents": of_files(documents), "tokenizer": of_tokenizer(tokenizer)}
    if not is_made("LM's tokens", out, {"plan": {"held_out": held_out, "seed": seed}, "inputs": inputs}):
        rng = random.Random(seed)
        texts = []
        for record in read_json_lines(documents):
            share = {"books": BOOKS_SHARE}.get(record["source"], 1.0)
            share = SHORT_SHARE if record["source"] in SHORT_SOURCES else share
            if record["lang"] == "en" and rng.random() < share:
                texts.append(record["text"])
        rng.shuffle(texts)
        streams = []
        split = int(len(texts) * held_out)
        for part in (texts[split:], texts[:split]):
            pieces = []
            for begin in range(0, len(part), 5000):
                for ids in tokenizer(part[begin : begin + 5000], add_special_tokens=False).input_ids:
                    pieces += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
            streams.append(np.array(pieces, dtype=np.uint16))
        save_arrays(out, train=streams[0], held_out=streams[1])
    with np.load(out) as arrays:
        return arrays["train"], arrays["held_out"]


def _windows(stream: np.ndarray, plan: LlmPlan) -> Iterator[torch.Tensor]:
    """Endless [B, W + 1] windows: every epoch shuffles all windows from a random offset."""
    rng = np.random.default_rng(plan.seed)
    while True:
        begins = np.arange(rng.integers(plan.window), len(stream) - plan.window - 1, plan.window)
        rng.shuffle(begins)
        for at in range(0, len(begins) - plan.batch + 1, plan.batch):
            chosen = [stream[b : b + plan.window + 1] for b in begins[at : at + plan.batch]]
            yield torch.from_numpy(np.stack(chosen).astype(np.int64))


def train_llm(
    train: np.ndarray, held_out: np.ndarray, tokenizer: PreTrainedTokenizerBase, plan: LlmPlan, out: Path
) -> LlamaForCausalLM:
    """Trains once into `out` (bf16 weights, `training.json` with the figures) and loads it."""
    inputs = {"train": of_arrays(train), "held_out": of_arrays(held_out), "tokenizer": of_tokenizer(tokenizer)}
    made = {"plan": asdict(plan), "inputs": inputs}
    if not is_made("LM", out, made, last=out / "training.json"):
        device = training_device()
        model = new_llm(plan, tokenizer).to(device, torch.bfloat16).train()
        progress = Progress(out.with_suffix(".progress"), every=SAVE_EVERY, plan=made)
        history = _run(model, train, plan, progress)
        model.generation_config.max_new_tokens = 64
        model.eval().save_pretrained(out)
        loss = held_out_loss(model, held_out, plan)
        figures = {
            "plan": asdict(plan),
            "train_tokens": len(train),
            "held_out_tokens": len(held_out),
            "held_out_loss": round(loss, 4),
            "held_out_perplexity": round(math.exp(loss), 2),
            "history": history,
        }
        replace_text(out / "training.json", json.dumps(figures, indent=1))
        progress.finish()
    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def _run(model: LlamaForCausalLM, train: np.ndarray, plan: LlmPlan, progress: Progress) -> list[dict]:
    optimiser = MasterOptimiser(
        model, rate=plan.rate, steps=plan.steps, warmup_steps=plan.steps // 20, weight_decay=0.05
    )
    begun, record = progress.load(optimiser)
    history, total = record.get("history", []), record.get("total", 0.0)
    started = time.monotonic() - record.get("seconds", 0.0)
    report_every = max(1, plan.steps // 40)
    for step, ids in islice(zip(range(1, plan.steps + 1), _windows(train, plan), strict=False), begun, None):
        ids = ids.to(model.device)
        logits_BWV = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BWV.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        total += loss.item()
        seconds = round(time.monotonic() - started, 1)
        if step % report_every == 0:
            history.append({"step": step, "loss": round(total / report_every, 4), "seconds": seconds})
            log.info("llm %s", history[-1])
            total = 0.0
        progress.save(step, optimiser, {"history": history, "total": total, "seconds": seconds})
    return history


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, held_out: np.ndarray, plan: LlmPlan) -> float:
    """Mean cross-entropy (nats a token) over non-overlapping windows of the held-out stream."""
    begins = range(0, min(len(held_out) - plan.window - 1, 400 * plan.window), plan.window)
    losses = []
    for begin in begins:
        ids = torch.from_numpy(held_out[begin : begin + plan.window + 1].astype(np.int64))[None].to(model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        losses.append(float(functional.cross_entropy(logits[0], ids[0, 1:])))
    return float(np.mean(losses))
