"""The batches of an evaluation: those of `layerbridge.model.batches`, by what the evaluation's config allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from layerbridge.config import EvaluationConfig
from layerbridge.model import batches

Found = TypeVar("Found")


def in_batches(
    lengths: Sequence[int], config: EvaluationConfig, run: Callable[[list[int]], Found]
) -> Iterator[tuple[list[int], Found]]:
    """Run something on all texts, batch by batch, and yield each batch with what came out.

    Args:
        lengths: Tokens of each text, as far as they are read.
        config: `batch_tokens` and `batch_size`.
        run: Takes the numbers of the texts of one batch, the longest first.

    Raises:
        ConfigError: one text alone does not fit the memory.
    """
    return batches.in_batches(
        lengths,
        run,
        batch_tokens=config.batch_tokens,
        batch_size=config.batch_size,
        to_lower={"max_source_tokens": config.max_source_tokens, "max_new_tokens": config.max_new_tokens},
        options="evaluation.",
    )
