"""Any number of texts in batches of like length, as many as fit a budget of tokens, and fewer once memory has run out.

The longest come first, so that little is padding and a batch too large for the memory fails at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from layerbridge.errors import ConfigError, DataError, is_out_of_memory

if TYPE_CHECKING:
    from layerbridge.model.processor import BridgeProcessor

Found = TypeVar("Found")

BATCH_TOKENS = 4096
"""Tokens of a batch, padding included, where nothing else is said."""
BATCH_SIZE = 256
"""Texts of a batch at most, where nothing else is said."""

SHOWN_CHARACTERS = 40
"""Of a text in an error."""


def ask_in_batches(
    processor: BridgeProcessor,
    ask: Callable[[list[str], list[str] | None], Sequence[Found]],
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    max_source_tokens: int,
    max_new_tokens: int | None = None,
    batch_tokens: int | None,
    batch_size: int,
) -> list[Found]:
    """Return what `ask` finds for each text, in the texts' order.

    What fits one batch is asked in one, in the order given.

    Args:
        processor: counts the tokens that are read.
        ask: takes the texts of a batch and their prompts, and returns one answer a text.
        texts: any number above zero.
        prompts: what the LLM reads, a text a row; None: the configured prompt.
        max_source_tokens: longer texts are cut.
        max_new_tokens: of an answer, where answers are written; named when one text does not fit the memory.
        batch_tokens: of a batch, padding included; None: one batch, however large.
        batch_size: texts of a batch at most.

    Raises:
        ConfigError: a budget below one, or one text alone does not fit the memory.
        DataError: no texts, one text in place of a list, or one that is no text or tokenises to nothing.
    """
    texts = as_list(texts, "texts")
    prompts = None if prompts is None else as_list(prompts, "prompts")
    if not texts:
        raise DataError("Got no texts; wanted at least one.")
    if prompts is not None and len(prompts) != len(texts):
        raise DataError(f"Got {len(texts)} texts and {len(prompts)} prompts; wanted one for each text.")
    if batch_tokens is None:
        return list(ask(texts, prompts))
    if batch_tokens < 1 or batch_size < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens} and batch_size {batch_size}; wanted at least 1 of each.")

    def ask_some(batch: list[int]) -> dict[int, Found]:
        rows = sorted(batch)  # sampling draws row by row, so one batch keeps the order of its texts
        some = None if prompts is None else [prompts[row] for row in rows]
        return dict(zip(rows, ask([texts[row] for row in rows], some), strict=True))

    found: dict[int, Found] = {}
    lengths = processor.count_read_tokens(texts, prompts, max_source_tokens)
    to_lower = {"max_source_tokens": max_source_tokens}
    if max_new_tokens is not None:
        to_lower["max_new_tokens"] = max_new_tokens
    for _, answers in in_batches(
        lengths,
        ask_some,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        to_lower=to_lower,
    ):
        found |= answers
    return [found[row] for row in range(len(texts))]


def as_list(values: Sequence[str], what: str) -> list[str]:
    """Return texts as a list.

    Args:
        values: texts.
        what: they are, for errors: texts, labels.

    Raises:
        DataError: one text in place of a list, or what is no Unicode text.
    """
    if isinstance(values, str | bytes):
        raise DataError(
            f"Got one {type(values).__name__} for {what}, {_short(values)}; wanted a list. Put it in brackets: [text]."
        )
    values = list(values)
    for number, value in enumerate(values, start=1):
        problem = why_no_text(value)
        if problem is not None:
            raise DataError(f"Number {number} of {len(values)} {what} {problem}")
    return values


def why_no_text(value: object) -> str | None:
    """Return what is wrong with a value that is no Unicode text, as the end of a sentence; None: it is text."""
    if not isinstance(value, str):
        return f"is {_short(value)}, a {type(value).__name__}; wanted text."
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a tokenizer would fail far from here
        half = f"U+{ord(value[error.start]):04X}"
        return f"holds half a character ({half}); wanted Unicode text. Mend or drop it."
    return None


def in_batches(
    lengths: Sequence[int],
    run: Callable[[list[int]], Found],
    *,
    batch_tokens: int,
    batch_size: int,
    to_lower: Mapping[str, int],
    options: str = "",
) -> Iterator[tuple[list[int], Found]]:
    """Run something on all texts, batch by batch, and yield each batch with what came out.

    When memory runs out, the batch is divided and `batch_tokens` is halved for it and the rest; a warning says so once.

    Args:
        lengths: tokens of each text, as far as they are read.
        run: takes the numbers of the texts of one batch, the longest first.
        batch_tokens: of a batch, padding included.
        batch_size: texts of a batch.
        to_lower: options, with their values, that make one text smaller; for the error.
        options: what their names begin with where the user sets them, such as `evaluation.`.

    Raises:
        ConfigError: one text alone does not fit the memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    budget, start, warned = batch_tokens, 0, False
    while start < len(order):
        batch = next_batch(order, lengths, start, batch_tokens=budget, batch_size=batch_size)
        try:
            found = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            longest = lengths[batch[0]]
            if len(batch) == 1:
                lower = " or ".join(f"{options}{name} (now {value})" for name, value in to_lower.items())
                raise ConfigError(
                    f"Memory ran out on one text of {longest} tokens alone. Lower {lower}, or load the models in a "
                    "shorter dtype."
                ) from error
            budget = max(1, len(batch) * longest // 2)
            if not warned:
                warnings.warn(
                    f"Memory ran out on {len(batch)} texts of up to {longest} tokens; going on with at most {budget} "
                    f"tokens a batch instead of {batch_tokens}, and fewer if need be. Lower {options}batch_tokens to "
                    "be spared the first try.",
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
        order: numbers of the texts, the longest first.
        lengths: tokens of each text.
        start: where the batch begins.
        batch_tokens: of a batch, padding included.
        batch_size: texts of a batch.
    """
    longest = max(1, lengths[order[start]])
    return list(order[start : start + max(1, min(batch_size, batch_tokens // longest))])


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
