"""Training rows as token ids: tokenised once, at the start, and kept flat, so that 100,000 rows weigh what they hold.

Shapes: N all tokens of all rows.
"""

import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerbridge.config import TrainingConfig
from layerbridge.data.example import Example
from layerbridge.model.processor import BridgeInputs, BridgeProcessor, cut_answer
from layerbridge.model.splice import IGNORED

TEXTS_AT_ONCE = 1024
"""Texts that the tokenizer is given at once: its results take far more memory than the ids."""


class Row(NamedTuple):
    """Token ids of one row."""

    source: Tensor
    prompt: Tensor
    answer: Tensor
    learned: bool = True
    """False: a filler, from which nothing is learned."""
    number: int = 0
    """Among all rows."""


class TokenRows(torch.utils.data.Dataset[Row]):
    """Token ids of examples, cut at the recipe's limits.

    `rows[i]` is a row; `rows[-1 - i]` the same row as a filler: with nothing to learn, for a process that a short
    batch has no row for.

    Args:
        examples: in the order that indices count.
        processor: the two tokenizers and the prompt.
        training: the limits.
        answered: False: the answers are not even read; each is the end token alone, for what it is predicted from.

    Raises:
        DataError: a text or an answer that tokenises to nothing.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: BridgeProcessor,
        training: TrainingConfig,
        *,
        answered: bool = True,
    ) -> None:
        limit = processor.source_limit(training.max_source_tokens)
        self.source_limit = limit
        """Encoder tokens a text at most."""
        self.num_cut_texts = 0
        """Texts longer than the limit of encoder tokens."""
        self.source = _Ragged(self._source_rows(examples, processor))
        answers = Counter(example.answer for example in examples if answered)
        ids = dict(zip(answers, processor.answer_ids(list(answers)), strict=True))
        most = training.max_answer_tokens
        self.num_cut_answers = sum(count for answer, count in answers.items() if len(ids[answer]) > most)
        """Answers longer than the limit of LLM tokens."""
        self.answers = {answer: torch.tensor(cut_answer(row, most)) for answer, row in ids.items()}
        self.no_answer = None if answered else torch.tensor([processor.llm_tokenizer.eos_token_id])
        self.examples = examples
        varies = processor.prompt.llm_reads_text  # else one prompt serves all rows
        self.prompt = _Ragged(_prompt_rows(examples, processor) if varies else processor.prompt_ids([""]))

    def _source_rows(self, examples: Sequence[Example], processor: BridgeProcessor) -> Iterator[Sequence[int]]:
        """Yield each text's ids, and count those that are cut."""
        limit = self.source_limit
        for texts in _parts(examples):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Texts longer than")  # the run says it once
                rows = processor.source_ids(texts, limit)
            full = [text for text, row in zip(texts, rows, strict=True) if len(row) >= limit]
            if full:
                self.num_cut_texts += sum(length > limit for length in processor.count_source_tokens(full))
            yield from rows

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        place = index if index >= 0 else -1 - index
        return Row(
            source=self.source[place],
            prompt=self.prompt[place % len(self.prompt)],
            answer=self.answers[self.examples[place].answer] if self.no_answer is None else self.no_answer,
            learned=index >= 0,
            number=place,
        )

    @property
    def source_lengths(self) -> list[int]:
        """Encoder tokens of each text, as cut."""
        return self.source.lengths


class _Ragged:
    """Rows of different lengths in one tensor (N,) of int32."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        flat, starts = array("i"), array("q", [0])
        for row in rows:
            flat.extend(row)
            starts.append(len(flat))
        self.flat_N = torch.frombuffer(flat, dtype=torch.int32) if flat else torch.empty(0, dtype=torch.int32)
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Tensor:
        return self.flat_N[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]


def collate(rows: Sequence[Row], processor: BridgeProcessor, *, numbered: bool = False) -> dict[str, Tensor]:
    """Return rows of token ids as one batch of tensors.

    A batch of fillers goes through both models like any other, so it keeps its answers, as `unlearned`; as labels,
    which the Trainer counts, it has none.

    Args:
        rows: of one batch.
        processor: pads them.
        numbered: also say which rows they are (B,), as `row_numbers`.
    """
    inputs: BridgeInputs = processor.batch(*zip(*(row[:3] for row in rows), strict=True))
    batch = inputs.tensors()
    if numbered:
        batch["row_numbers"] = torch.tensor([row.number for row in rows])
    if not rows[0].learned:
        batch |= {"labels": torch.full_like(batch["labels"], IGNORED), "unlearned": batch["labels"]}
    return batch


def _prompt_rows(examples: Sequence[Example], processor: BridgeProcessor) -> Iterator[Sequence[int]]:
    for texts in _parts(examples):
        yield from processor.prompt_ids(texts)


def _parts(examples: Sequence[Example]) -> Iterator[list[str]]:
    for start in range(0, len(examples), TEXTS_AT_ONCE):
        yield [example.text for example in examples[start : start + TEXTS_AT_ONCE]]
