"""Teaches the English LM to follow two short instructions: name a text's topic, name a headline's category.

Rows are English sentences written for this project (`instructions/topics.tsv`) and the training rows of the embedded
headlines; `text`, an instruction, the answer, `</s>`. The answer carries the loss, and the text a little, so that the
LM stays one. An LLM that one would really bridge to has learned such things by itself.

Shapes: B rows a batch, W tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

import csv
import json
import logging
import random
import time
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class InstructionPlan:
    """The second stage of the LM's training."""

    epochs: int = 5
    batch: int = 32
    rate: float = 1e-3
    text_share: float = 0.2
    """Weight of the text's own next-token loss beside the answer's."""
    seed: int = 0


@dataclass(frozen=True)
class Instruction:
    """One row: the LM reads text and instruction and is to answer."""

    text: str
    instruction: str
    answer: str


def instruction_rows() -> tuple[list[Instruction], list[Instruction]]:
    """Rows to train on, and the headlines' dev rows to measure on."""
    headlines = resources.files("layerbridge").joinpath("embedded", "headlines", "en")
    train = _read(HERE / "instructions" / "topics.tsv", "topic", "\nTopic:")
    train += _read(Path(str(headlines / "train.tsv")), "category", "\nCategory:")
    return train, _read(Path(str(headlines / "dev.tsv")), "category", "\nCategory:")


def train_instructions(
    base: Path, tokenizer: PreTrainedTokenizerBase, plan: InstructionPlan, out: Path
) -> LlamaForCausalLM:
    """Trains once into `out` (bf16 weights; `training.json` of `base` with this stage's figures added) and loads it."""
    if not (out / "config.json").exists():
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        train, dev = instruction_rows()
        figures = json.loads((base / "training.json").read_text(encoding="utf-8"))
        history = _run(model, tokenizer, train, dev, plan)
        figures["instructions"] = {"plan": asdict(plan), "rows": len(train), "dev_rows": len(dev), "history": history}
        model.eval().to(torch.bfloat16).save_pretrained(out)
        (out / "training.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def _run(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Instruction],
    dev: list[Instruction],
    plan: InstructionPlan,
) -> list[dict]:
    steps = plan.epochs * -(-len(train) // plan.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
    )
    rng, history, started = random.Random(plan.seed), [], time.monotonic()
    for epoch in range(plan.epochs):
        rng.shuffle(train)
        model.train()
        for begin in range(0, len(train), plan.batch):
            answer, text = _losses(model, tokenizer, train[begin : begin + plan.batch])
            (answer.mean() + plan.text_share * text).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        accuracy = dev_accuracy(model, tokenizer, dev)
        history.append({"epoch": epoch + 1, "dev_accuracy": accuracy, "seconds": round(time.monotonic() - started, 1)})
        log.info("instructions %s", history[-1])
    return history


@torch.inference_mode()
def dev_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, dev: list[Instruction]) -> float:
    """Share of rows whose right answer is the most probable of all answers."""
    model.eval()
    answers = sorted({row.answer for row in dev})
    costs = [
        _losses(model, tokenizer, [Instruction(row.text, row.instruction, answer) for row in dev])[0]
        for answer in answers
    ]
    chosen = torch.stack(costs, dim=1).argmin(dim=1).tolist()
    return sum(answers[index] == row.answer for index, row in zip(chosen, dev, strict=True)) / len(dev)


def _losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[Instruction]
) -> tuple[Tensor, Tensor]:
    """Each row's summed answer loss (B,), and the mean loss of all text tokens."""
    ids_BW, answer_BW, text_BW = _batch(tokenizer, rows)
    mask_BW = text_BW | answer_BW
    logits_BWV = model(input_ids=ids_BW, attention_mask=mask_BW.long()).logits[:, :-1]
    losses_BW = functional.cross_entropy(logits_BWV.transpose(1, 2), ids_BW[:, 1:], reduction="none")
    answer_B = (losses_BW * answer_BW[:, 1:]).sum(dim=1)
    return answer_B, losses_BW[text_BW[:, 1:]].mean()


def _batch(tokenizer: PreTrainedTokenizerBase, rows: list[Instruction]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, and which of them are answer (its end included) and which text or instruction."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    sequences = [
        ([tokenizer.bos_token_id, *ids(row.text), *ids(row.instruction)], [*ids(row.answer), tokenizer.eos_token_id])
        for row in rows
    ]
    width = max(len(read) + len(answer) for read, answer in sequences)
    ids_BW = torch.full((len(rows), width), tokenizer.pad_token_id)
    answer_BW, text_BW = (torch.zeros((len(rows), width), dtype=torch.bool) for _ in range(2))
    for index, (read, answer) in enumerate(sequences):
        end = len(read) + len(answer)
        ids_BW[index, :end] = torch.tensor(read + answer)
        text_BW[index, : len(read)] = True
        answer_BW[index, len(read) : end] = True
    return ids_BW, answer_BW, text_BW


def _read(path: Path, column: str, instruction: str) -> list[Instruction]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Instruction(row["text"], instruction, row[column]) for row in rows]
