"""Teaches the English LM to follow short instructions: topic, category, sentiment, inference, short answers.

The rows are those of `instruction_rows.py`: a text, an instruction, the answer, `</s>`; each time in one of two shapes,
bare (`text`, a new line, `Topic:`, `Sports`) as after a bridge's soft tokens, or as the tasks' prompts have it
(`Sentence: text Topic: Sports`). The answer carries the loss, and written texts a little, so that the LM stays one. An
LLM that one would really bridge to has learned such things by itself.

Shapes: B rows a batch, W tokens of the longest row, N tokens with a loss, D width, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from layerbridge.atomic import replace_text
from pretraining.instruction_rows import KINDS, Instruction, instruction_rows
from pretraining.made import is_made, of_files, of_text, of_tokenizer
from pretraining.optimiser import PlainState
from pretraining.resume import Progress, training_device

log = logging.getLogger(__name__)

POOL = 16
"""Batches that are sorted by length together, so that rows of like length share one."""
WARMUP_STEPS = 20
SAVE_EVERY = 100
"""Steps between two writes of what a stopped training goes on from."""


@dataclass(frozen=True, kw_only=True)
class InstructionPlan:
    """The second stage of the LM's training."""

    epochs: int = 5
    """Parts of the training, each closed by a look at the held-out rows."""
    steps: int = 1200
    """Optimiser updates, all epochs together."""
    batch: int = 32
    rate: float = 1e-3
    text_share: float = 0.2
    """Weight of the written texts' own next-token loss beside the answers'."""
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "topic": 0.24,
            "headline": 0.12,
            "news": 0.08,
            "sentiment": 0.08,
            "inference": 0.30,
            "short_answer": 0.18,
        }
    )
    """Share of each kind among the rows read, however many different ones there are; no row of a kind is read twice
    before all are read once."""
    prompted_share: float = 0.5
    """Share of the rows that are read in the shape of the tasks' prompts."""
    seed: int = 0


def train_instructions(
    base: Path, tokenizer: PreTrainedTokenizerBase, plan: InstructionPlan, out: Path
) -> LlamaForCausalLM:
    """Trains once into `out` (bf16 weights; `training.json` of `base` with this stage's figures added) and loads it.

    One thread, so that base, rows and seed give the same bits on one CPU. A training that was stopped goes on from
    what it last wrote beside `out`, and ends with the same weights.
    """
    train, held_out = instruction_rows(plan.seed)
    inputs = {
        "base": of_files(base / "config.json", base / "model.safetensors"),
        "tokenizer": of_tokenizer(tokenizer),
        "rows": of_text(repr((train, held_out))),
    }
    made = {"plan": asdict(plan), "inputs": inputs}
    if not is_made("instructions", out, made, last=out / "training.json"):
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).to(training_device())
        progress = Progress(out.with_suffix(".progress"), every=SAVE_EVERY, plan=made)
        figures = json.loads((base / "training.json").read_text(encoding="utf-8"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            history = _run(model, tokenizer, train, held_out, plan, progress)
        finally:
            torch.set_num_threads(threads)
        figures["instructions"] = {
            "plan": asdict(plan),
            "rows": _count(train),
            "held_out_rows": _count(held_out),
            "history": history,
        }
        model.cpu().eval().to(torch.bfloat16).save_pretrained(out)
        replace_text(out / "training.json", json.dumps(figures, indent=1))
        progress.finish()
    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def draw_rows(train: Sequence[Instruction], plan: InstructionPlan) -> Iterator[list[Instruction]]:
    """The rows of each epoch: every kind's share of them, in shuffled rounds over all its rows."""
    rng = random.Random(plan.seed)
    rounds = {kind: _rounds([row for row in train if row.kind == kind], rng) for kind in plan.shares}
    for epoch in range(plan.epochs):
        steps = plan.steps * (epoch + 1) // plan.epochs - plan.steps * epoch // plan.epochs
        counts = _apportion(plan.shares, steps * plan.batch)
        rows = [next(rounds[kind]) for kind, count in counts.items() for _ in range(count)]
        rng.shuffle(rows)
        yield rows


def _rounds(rows: list[Instruction], rng: random.Random) -> Iterator[Instruction]:
    while True:
        rng.shuffle(rows)
        yield from rows


def _apportion(shares: dict[str, float], count: int) -> dict[str, int]:
    """Whole numbers that add up to `count`, each less than one from its share."""
    total = sum(shares.values())
    ends, at = [], 0.0
    for share in shares.values():
        at += share
        ends.append(round(count * at / total))
    return {kind: end - begin for kind, begin, end in zip(shares, [0, *ends[:-1]], ends, strict=True)}


def _count(rows: Sequence[Instruction]) -> dict[str, int]:
    return {kind: sum(row.kind == kind for row in rows) for kind in KINDS}


@dataclass(frozen=True)
class Tokens:
    """One row as token ids."""

    read: list[int]
    answer: list[int]
    learns_text: bool
    """Whether what is read carries a loss too."""

    def __len__(self) -> int:
        return len(self.read) + len(self.answer)


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Instruction, *, prompted: bool) -> Tokens:
    read, answer = row.prompted() if prompted else row.bare()
    read_ids, answer_ids = tokenizer([read, answer], add_special_tokens=False).input_ids
    return Tokens(
        [tokenizer.bos_token_id, *read_ids], [*answer_ids, tokenizer.eos_token_id], KINDS[row.kind].is_written
    )


def _run(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Instruction],
    held_out: list[Instruction],
    plan: InstructionPlan,
    progress: Progress,
) -> list[dict]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=0.05)
    state = PlainState(optimiser)
    begun, record = progress.load(state)
    history, step = record.get("history", []), 0
    rng, started = random.Random(plan.seed + 1), time.monotonic() - record.get("seconds", 0.0)
    for epoch, rows in enumerate(draw_rows(train, plan)):
        model.train()
        for batch in _batches(tokenizer, rows, plan, rng):
            step += 1
            if step <= begun:
                continue
            for group in optimiser.param_groups:
                group["lr"] = plan.rate * _rate_share(step - 1, plan)
            answer_B, text = _losses(model, batch, tokenizer.pad_token_id)
            (answer_B.mean() + plan.text_share * text).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            progress.save(step, state, {"history": history, "seconds": round(time.monotonic() - started, 1)})
        if epoch < len(history):  # looked at before the stop
            continue
        accuracy = accuracies(model, tokenizer, held_out)
        history.append({"epoch": epoch + 1, "accuracy": accuracy, "seconds": round(time.monotonic() - started, 1)})
        log.info("instructions %s", history[-1])
    return history


def _rate_share(step: int, plan: InstructionPlan) -> float:
    """Share of the rate after `step` updates: warm-up, then a straight way down to a tenth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1 - 0.9 * step / plan.steps)


def _batches(
    tokenizer: PreTrainedTokenizerBase, rows: list[Instruction], plan: InstructionPlan, rng: random.Random
) -> Iterator[list[Tokens]]:
    """Batches of rows of like length, in no order of length."""
    for begin in range(0, len(rows), POOL * plan.batch):
        pool = [
            _tokens(tokenizer, row, prompted=rng.random() < plan.prompted_share)
            for row in rows[begin : begin + POOL * plan.batch]
        ]
        pool.sort(key=len)
        batches = [pool[at : at + plan.batch] for at in range(0, len(pool), plan.batch)]
        rng.shuffle(batches)
        yield from batches


@torch.inference_mode()
def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Instruction], *, batch: int = 64
) -> dict[str, float]:
    """Share of right rows by kind, asked bare.

    Right is the row whose answer is the most probable of its kind's answers; where those are open, the row whose answer
    greedy decoding writes, token by token, with the end after it.
    """
    model.eval()
    found = {}
    for kind, choices in ((kind, KINDS[kind].answers) for kind in KINDS):
        asked = sorted((row for row in rows if row.kind == kind), key=lambda row: len(row.text))
        right = 0
        for begin in range(0, len(asked), batch):
            part = asked[begin : begin + batch]
            if not choices:
                right += _num_written(model, [_tokens(tokenizer, row, prompted=False) for row in part], tokenizer)
                continue
            losses_BA = torch.stack([_answer_losses(model, tokenizer, part, answer) for answer in choices], dim=1)
            chosen = losses_BA.argmin(dim=1).tolist()
            right += sum(choices[index] == row.answer for index, row in zip(chosen, part, strict=True))
        if asked:
            found[kind] = round(right / len(asked), 4)
    return found


def _answer_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Instruction], answer: str
) -> Tensor:
    asked = [_tokens(tokenizer, Instruction(row.kind, row.text, answer), prompted=False) for row in rows]
    return _losses(model, asked, tokenizer.pad_token_id)[0]


def _num_written(model: LlamaForCausalLM, rows: list[Tokens], tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows whose every answer token is the most probable one after those before it."""
    ids_BW, answer_BW, _ = _padded(rows, tokenizer.pad_token_id, model.device)
    best_BW = model(input_ids=ids_BW, use_cache=False).logits[:, :-1].argmax(dim=-1)
    right_BW = (best_BW == ids_BW[:, 1:]) | ~answer_BW[:, 1:]
    return int(right_BW.all(dim=1).sum())


def _losses(model: LlamaForCausalLM, rows: list[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Each row's summed answer loss (B,), and the mean loss of the tokens of written texts (0 without any).

    Only tokens with a loss get logits. Rows are padded on the right of causal attention, so they need no mask.
    """
    ids_BW, answer_BW, text_BW = _padded(rows, pad, model.device)
    has_loss_BW = (answer_BW | text_BW)[:, 1:]
    states_BWD = model.model(input_ids=ids_BW, use_cache=False).last_hidden_state[:, :-1]
    logits_NV = model.lm_head(states_BWD[has_loss_BW])
    losses_N = functional.cross_entropy(logits_NV, ids_BW[:, 1:][has_loss_BW], reduction="none")
    is_answer_N = answer_BW[:, 1:][has_loss_BW]
    row_N = has_loss_BW.nonzero()[:, 0]
    answer_B = losses_N.new_zeros(len(rows)).index_add(0, row_N[is_answer_N], losses_N[is_answer_N])
    text_N = losses_N[~is_answer_N]
    return answer_B, text_N.mean() if len(text_N) else losses_N.new_zeros(())


def _padded(rows: list[Tokens], pad: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """On `device`: right-padded ids, and which of them are answer (its end included) and which text with a loss."""
    width = max(map(len, rows))
    ids_BW = torch.full((len(rows), width), pad)
    answer_BW, text_BW = (torch.zeros((len(rows), width), dtype=torch.bool) for _ in range(2))
    for index, row in enumerate(rows):
        begin, end = len(row.read), len(row)
        ids_BW[index, :end] = torch.tensor(row.read + row.answer)
        text_BW[index, :begin] = row.learns_text
        answer_BW[index, begin:end] = True
    return ids_BW.to(device), answer_BW.to(device), text_BW.to(device)
