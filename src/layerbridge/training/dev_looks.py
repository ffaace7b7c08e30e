"""A look at the dev rows: what steps are chosen by."""

from collections.abc import Sequence

import torch
from torch import distributed

from layerbridge.config import TrainingConfig
from layerbridge.model.bridge import Bridge
from layerbridge.model.processor import BridgeInputs
from layerbridge.model.splice import IGNORED
from layerbridge.training.token_rows import TokenRows, collate


@torch.no_grad()
def dev_metrics(
    bridge: Bridge, dev: TokenRows, answers: Sequence[str] | None, training: TrainingConfig
) -> dict[str, float]:
    """Return `eval_loss`, `eval_accuracy` (of tasks with answers) and `eval_selection`, what steps are chosen by.

    Selection is the accuracy, or minus the loss for free text; the higher the better, and of equals the earlier.
    Several processes share the rows, and all return the figures of all rows.
    """
    bridge.eval()
    batch_size = max(32, training.micro_batch_size or training.batch_size)
    mine = _rows_of_this_process(len(dev), training)
    total, num_tokens, correct = 0.0, 0, 0
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        batch = collate([dev[number] for number in numbers], bridge.processor)
        tokens = int((batch["labels"] != IGNORED).sum())
        total += bridge.loss(BridgeInputs(**batch).to(bridge.device)).item() * tokens
        num_tokens += tokens
        if answers is not None:
            rows = [dev.examples[number] for number in numbers]
            scores_BN = bridge.score(
                [row.text for row in rows], list(answers), max_source_tokens=training.max_source_tokens
            )
            chosen = [answers[int(index)] for index in scores_BN.argmax(dim=1)]
            correct += sum(row.answer == answer for row, answer in zip(rows, chosen, strict=True))
    if len(mine) < len(dev):
        sums = torch.tensor([total, num_tokens, correct], dtype=torch.float64, device=bridge.device)
        distributed.all_reduce(sums)
        total, num_tokens, correct = sums[0].item(), int(sums[1]), int(sums[2])
    loss = total / num_tokens
    if answers is None:
        return {"eval_loss": loss, "eval_selection": -loss}
    accuracy = correct / len(dev)
    return {"eval_loss": loss, "eval_accuracy": accuracy, "eval_selection": accuracy}


def _rows_of_this_process(num_rows: int, training: TrainingConfig) -> range:
    """Return every row, or this process's share: with a sharded LLM all processes must call it in step."""
    if training.shard_llm or num_rows < 2 or not distributed.is_available() or not distributed.is_initialized():
        return range(num_rows)
    return range(distributed.get_rank(), num_rows, distributed.get_world_size())
