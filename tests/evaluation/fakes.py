"""A bridge, a task and results that need no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from layerbridge.config import BridgeConfig
from layerbridge.data.example import Example, Split
from layerbridge.evaluation.predictions import Prediction, PredictionsHeader
from layerbridge.results import LanguageScore, MethodScore, Provenance, Results

ANSWERS = ("Business", "Sports", "Science")
CREATED = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SHA = {name: name.ljust(64, "0") for name in "abcdef"}


class FakeFusion:
    """One that has no layer weights to show."""

    mixes = False


@dataclass
class FakeBridge:
    """Finds its answer in the text: `... says X` scores X best and generates it."""

    fingerprint_: str = SHA["a"]
    config: BridgeConfig = field(default_factory=BridgeConfig)
    trained_on: dict[str, Any] | None = None
    fail_on: str | None = None
    batches: list[list[str]] = field(default_factory=list)
    source_limits: set[int] = field(default_factory=set)
    fusion: FakeFusion = field(default_factory=FakeFusion)

    @property
    def bases(self) -> dict[str, dict[str, Any]]:
        return {
            "encoder": {"name": "/somewhere/models/tiny", "revision": None, "fingerprint": "e1"},
            "llm": {"name": "embedded", "revision": None, "fingerprint": "l1"},
        }

    def fingerprint(self) -> str:
        return self.fingerprint_

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def source_limit(self, max_source_tokens: int) -> int:
        return max_source_tokens

    def score(self, texts: Sequence[str], answers: Sequence[str], *, max_source_tokens: int = 512) -> np.ndarray:
        self._see(texts, max_source_tokens)
        rows = [[self._log_prob(text, answer) for answer in answers] for text in texts]
        return np.array(rows, dtype=np.float32)

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 32,
        max_source_tokens: int = 512,
        batch_tokens: int | None = None,
    ) -> list[str]:
        self._see(texts, max_source_tokens)
        return [" " + text.split("says ")[-1] + "\n" for text in texts]

    def _log_prob(self, text: str, answer: str) -> float:
        if text.endswith("nan"):
            return float("nan")
        return -1.0 if text.endswith(f"says {answer}") else -2.0 - len(answer)

    def _see(self, texts: Sequence[str], max_source_tokens: int) -> None:
        if self.fail_on and any(self.fail_on in text for text in texts):
            raise KeyboardInterrupt
        self.batches.append(list(texts))
        self.source_limits.add(max_source_tokens)


@dataclass
class FakeTask:
    splits_by_language: dict[str, Split]
    answers: tuple[str, ...] | None = ANSWERS
    name: str = "news"
    version: int = 1

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.splits_by_language)

    def languages_of(self, split: str) -> tuple[str, ...]:
        return self.languages

    def load(self, language: str, split: str) -> Split:
        return self.splits_by_language[{"Sinhala": "si"}.get(language, language)]


def make_split(language: str, said: Sequence[tuple[str, str]], *, source: str = "local:news") -> Split:
    """Rows of (gold answer, what the bridge will say); texts of different lengths."""
    examples = (
        Example(
            id=f"{language}-{number}",
            language=language,
            text=f"{language} {'word ' * (number * 7 % 5)}says {says}",
            answer=gold,
        )
        for number, (gold, says) in enumerate(said)
    )
    return Split.of(examples, source=source)


def make_provenance(**changes: Any) -> Provenance:
    data = {
        "task": "news",
        "task_version": 1,
        "split": "test",
        "limit": None,
        "methods": ("score", "generate"),
        "max_source_tokens": 512,
        "max_new_tokens": 32,
        "run": "ts-seed-0",
        "fusion": "transformer_softmax",
        "seed": 0,
        "checkpoint_sha256": SHA["a"],
        "config_sha256": SHA["b"],
        "setup_sha256": SHA["c"],
        "bases": {
            "encoder": {"name": "embedded", "fingerprint": "e1"},
            "llm": {"name": "embedded", "fingerprint": "l1"},
        },
        "languages_seen": ("en",),
        "versions": {"layerbridge": "0.1.0", "torch": "2.6", "transformers": "5.17"},
    }
    return Provenance.model_validate(data | changes)


def make_language(correct: int = 6, *, n: int = 10, unreadable: int = 1, **changes: Any) -> LanguageScore:
    data = {
        "n": n,
        "methods": {
            "score": MethodScore(correct=correct, unreadable=0),
            "generate": MethodScore(correct=max(0, min(correct, n - unreadable)), unreadable=unreadable),
        },
        "majority_answer": "Business",
        "majority_correct": 4,
        "truncated": 0,
        "data_source": "local:news",
        "data_sha256": SHA["d"],
    }
    return LanguageScore.model_validate(data | changes)


def make_results(languages: dict[str, LanguageScore] | None = None, **changes: Any) -> Results:
    created = changes.pop("created", CREATED)
    return Results(
        provenance=make_provenance(**changes),
        created=created,
        languages=languages or {"en": make_language(8), "si": make_language(5), "ta": make_language(6)},
    )


def make_header(n: int, **changes: Any) -> PredictionsHeader:
    data = {
        "language": "si",
        "n": n,
        "answers": ANSWERS,
        "data_source": "local:news",
        "data_sha256": SHA["d"],
        "created": CREATED,
        "provenance": make_provenance(),
    }
    return PredictionsHeader.model_validate(data | changes)


def make_prediction(number: int, gold: str, scored: str | None, generated: str, **changes: Any) -> Prediction:
    log_probs = {answer: -1.0 if answer == scored else -3.0 for answer in ANSWERS}
    if scored is None:
        log_probs[ANSWERS[0]] = None
    data: dict[str, Any] = {
        "id": f"row-{number}",
        "language": "si",
        "answer": gold,
        "scored": scored,
        "log_probs": log_probs,
        "generated": generated,
        "source_tokens": 5,
        "truncated": False,
    }
    return Prediction(**data | changes)
