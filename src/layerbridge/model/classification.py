"""Labels for texts: the probability of each answer, as the LLM's own log-probabilities share it out.

Shapes: B batch, N labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layerbridge.errors import ConfigError, DataError
from layerbridge.model.batches import BATCH_SIZE, BATCH_TOKENS, as_list, ask_in_batches
from layerbridge.model.processor import BridgeProcessor
from layerbridge.model.scoring import ScoringMixin


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Of one text."""

    label: str
    """The most probable one; of equally probable ones the first."""
    probability: float
    """Its own."""
    probabilities: dict[str, float]
    """Of every label, in the order in which they were given; they sum to one."""


class ClassificationMixin(ScoringMixin):
    """`classify`, for a bridge."""

    processor: BridgeProcessor
    trained_on: dict[str, Any] | None

    def classify(
        self,
        texts: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        max_source_tokens: int = 512,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> list[Classification]:
        """Return the label of each text: the softmax over labels of `score`, whatever the number of texts.

        Args:
            texts: what the encoder reads, in a list; `render` puts the task's prompt around them.
            labels: to choose from, in the words that the LLM writes; by default the answers of the task that the
                bridge was trained on.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            max_source_tokens: encoder tokens a text; longer texts are cut.
            batch_tokens: tokens of a batch, padding included; halved by itself when memory runs out.
            batch_size: texts of a batch at most.

        Raises:
            ConfigError: no labels, or doubled ones; or one text alone does not fit the memory.
            DataError: no texts, one text in place of a list, or log-probabilities that are not numbers.
        """
        chosen = self._labels(labels)

        def ask(some: list[str], their_prompts: list[str] | None) -> list[Classification]:
            scores_BN = self.score(some, chosen, prompts=their_prompts, max_source_tokens=max_source_tokens)
            rows = scores_BN.double().softmax(dim=-1).tolist()
            return [_classification(text, chosen, row) for text, row in zip(some, rows, strict=True)]

        return ask_in_batches(
            self.processor,
            ask,
            texts,
            prompts,
            max_source_tokens=max_source_tokens,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
        )

    def _labels(self, labels: Sequence[str] | None) -> list[str]:
        found = (self.trained_on or {}).get("answers") if labels is None else labels
        if found is None:
            raise ConfigError(
                "Got no labels, and this bridge was trained on no task with a set of answers. Give labels, such as "
                'labels=["yes", "no"], or use generate.'
            )
        chosen = as_list(found, "labels")
        if not chosen:
            raise ConfigError("The list of labels is empty; wanted at least one, and two to choose from.")
        doubled = sorted({label for label in chosen if chosen.count(label) > 1})
        if doubled:
            raise ConfigError(f"Labels are given twice: {', '.join(map(repr, doubled))}. Give each of them once.")
        return chosen


def not_numbers(text: str, what: str = "labels of") -> DataError:
    """Return the error for a text that an LLM answers with what is no number."""
    return DataError(
        f"The log-probabilities of the {what} {text[:40]!r} are not numbers, so none of them is the best. Load the "
        "models in float32 (encoder.dtype, llm.dtype); a shorter dtype may have overflowed."
    )


def _classification(text: str, labels: list[str], probabilities: list[float]) -> Classification:
    """Return a row's best label; a row of NaN has none, and no label may be made up for it."""
    if not all(0 <= value <= 1 for value in probabilities):
        raise not_numbers(text)
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return Classification(
        label=labels[best],
        probability=probabilities[best],
        probabilities=dict(zip(labels, probabilities, strict=True)),
    )
