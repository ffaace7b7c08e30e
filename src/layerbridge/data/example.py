"""What a task hands to training and evaluation: examples, in splits that know their origin and hash."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One text and its answer."""

    id: str
    """Unique within language and split."""
    language: str
    """Our code, such as `si`."""
    text: str
    """What the encoder reads: the task's prompt, rendered."""
    answer: str
    """The answer word, or free text."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples, where they came from, and their hash."""

    examples: tuple[Example, ...]
    source: str
    """Such as `hub:facebook/xnli@<revision>` or `local:<folder name>`; never an absolute path."""
    sha256: str
    """Of every example's id, text and answer, in order: of the data as used."""

    @classmethod
    def of(cls, examples: Iterable[Example], *, source: str) -> "Split":
        """Build a split and hash its examples."""
        examples = tuple(examples)
        digest = hashlib.sha256()
        for example in examples:
            line = json.dumps([example.id, example.text, example.answer], ensure_ascii=True)
            digest.update(line.encode("ascii") + b"\n")
        return cls(examples=examples, source=source, sha256=digest.hexdigest())

    def __len__(self) -> int:
        return len(self.examples)
