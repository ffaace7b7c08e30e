"""Texts in batches of like length, as many as fit a budget of tokens, and fewer once memory has run out.

The longest come first, so that little is padding and a batch too large for the memory fails at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from layerbridge.config import EvaluationConfig
from layerbridge.errors import ConfigError, is_out_of_memory

Found = TypeVar("Found")


def in_batches(
    lengths: Sequence[int], config: EvaluationConfig, run: Callable[[list[int]], Found]
) -> Iterator[tuple[list[int], Found]]:
    """Run something on all texts, batch by batch, and yield each batch with what came out.

    When memory runs out, the batch is divided and `batch_tokens` is halved for it and the rest; a warning says so once.

    Args:
        lengths: Tokens of each text, as far as they are read.
        config: `batch_tokens` and `batch_size`.
        run: Takes the numbers of the texts of one batch, the longest first.

    Raises:
        ConfigError: one text alone does not fit the memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    budget, start, warned = config.batch_tokens, 0, False
    while start < len(order):
        batch = next_batch(order, lengths, start, batch_tokens=budget, batch_size=config.batch_size)
        try:
            found = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            longest = lengths[batch[0]]
            if len(batch) == 1:
                raise ConfigError(
                    f"Memory ran out on one text of {longest} tokens alone. Lower evaluation.max_source_tokens (now "
                    f"{config.max_source_tokens}) or evaluation.max_new_tokens (now {config.max_new_tokens}), or load "
                    "the models in a shorter dtype."
                ) from error
            budget = max(1, len(batch) * longest // 2)
            if not warned:
                warnings.warn(
                    f"Memory ran out on {len(batch)} texts of up to {longest} tokens; going on with at most {budget} "
                    f"tokens a batch instead of {config.batch_tokens}, and fewer if need be. Lower "
                    "evaluation.batch_tokens to be spared the first try.",
                    stacklevel=2,
                )
                warned = True
        else:
            start += len(batch)
            yield batch, found
            continue
        _empty_cache()  # out here the error is gone, and with it the frames that held tensors


def next_batch(
    order: Sequence[int], lengths: Sequence[int], start: int, *, batch_tokens: int, batch_size: int
) -> list[int]:
    """Return the next of `order` from `start` on: at most `batch_size`, and rows x longest within `batch_tokens`.

    A text that is over the budget on its own is a batch on its own.

    Args:
        order: Numbers of the texts, the longest first.
        lengths: Tokens of each text.
        start: Where the batch begins.
        batch_tokens: Tokens of a batch, padding included.
        batch_size: Texts of a batch.
    """
    longest = max(1, lengths[order[start]])
    return list(order[start : start + max(1, min(batch_size, batch_tokens // longest))])


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
