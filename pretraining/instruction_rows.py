"""The rows on which the English LM learns to follow short instructions, and those it is measured on.

Six kinds. Topics, sentiment, news and part of inference are sentences written for this project (`instructions/*.tsv`);
headlines are the embedded ones; the rest of inference and the short answers are made by `inference_rows.py` and
`short_answers.py`. Of every benchmark but the headlines no row was read for any of it.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pretraining.inference_rows import LABELS, inference_cases
from pretraining.short_answers import short_answers

FOLDER = Path(__file__).parent / "instructions"

HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 120
"""Rows of a kind that are only measured on, at most (headlines: their 100 dev rows)."""
INFERENCE_CASES = 2_000
"""Generated hypotheses, three rows each."""
SHORT_ANSWERS = 4_000

NEWS_CATEGORIES = ("Business", "Entertainment", "Political", "Sports", "Science")


@dataclass(frozen=True)
class Kind:
    """One sort of instruction: how a row is put to the LM, and which answers there are."""

    lead: str
    """What a task's encoder prompt has before the text."""
    ask: str
    answers: tuple[str, ...] = ()
    """None: any words of the text."""
    is_written: bool = True
    """Whether people's sentences are read, whose own words are worth learning, and not filled templates."""


KINDS = {
    "topic": Kind(
        "Sentence: ", "Topic:", ("Science", "Travel", "Politics", "Sports", "Health", "Entertainment", "Geography")
    ),
    "headline": Kind("News Sentence: ", "Category:", NEWS_CATEGORIES),
    "news": Kind("News Sentence: ", "Category:", (*NEWS_CATEGORIES, "Local", "World")),
    "sentiment": Kind("Review: ", "Label:", ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive")),
    "inference": Kind("", "Label:", LABELS, is_written=False),
    "short_answer": Kind("Text: ", "Answer:", is_written=False),
}


@dataclass(frozen=True)
class Instruction:
    """One row: the LM reads text and instruction and is to answer."""

    kind: str
    text: str
    answer: str

    def bare(self) -> tuple[str, str]:
        """What is read and what is answered, as after the soft tokens of a bridge."""
        return f"{self.text}\n{KINDS[self.kind].ask}", self.answer

    def prompted(self) -> tuple[str, str]:
        """The same in the shape of the tasks' encoder prompts, with a space before the answer."""
        kind = KINDS[self.kind]
        return f"{kind.lead}{self.text} {kind.ask}", f" {self.answer}"


def instruction_rows(seed: int = 0) -> tuple[list[Instruction], list[Instruction]]:
    """Rows to train on, and a held-out part of every kind; no text is in both, and no premise or hypothesis."""
    train: list[Instruction] = []
    held_out: list[Instruction] = []
    for kind, groups in (
        ("topic", _singles("topic", read_table(FOLDER / "topics.tsv"), "topic")),
        ("news", _singles("news", read_table(FOLDER / "news.tsv"), "category")),
        ("sentiment", _singles("sentiment", read_table(FOLDER / "sentiment.tsv"), "label")),
        ("inference", _inference(seed)),
        ("short_answer", _short_answers(seed)),
    ):
        one, other = _divide(groups, random.Random(f"{kind} {seed}"))
        train += one
        held_out += other
    headlines = Path(str(resources.files("layerbridge").joinpath("embedded", "headlines", "en")))
    for rows, name in ((train, "train.tsv"), (held_out, "dev.tsv")):
        rows += [row for (row,) in _singles("headline", read_table(headlines / name), "category")]
    return train, held_out


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file with a header and no quoting."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def inference_text(premise: str, hypothesis: str) -> str:
    """Both sentences, as the XNLI task's encoder prompt has them."""
    return f"Premise: {premise} Hypothesis: {hypothesis}"


Groups = list[list[Instruction]]
"""Rows that go to one side together."""


def _singles(kind: str, rows: Sequence[dict[str, str]], column: str) -> Groups:
    return [[Instruction(kind, row["text"], row[column])] for row in rows]


def _inference(seed: int) -> Groups:
    """Cases of a hypothesis and three premises, and written pairs by their premise."""
    groups = [
        [Instruction("inference", inference_text(premise, case.hypothesis), label) for label, premise in pairs.items()]
        for case in inference_cases(INFERENCE_CASES, seed)
        for pairs in (case.premises,)
    ]
    written: dict[str, list[Instruction]] = {}
    for row in read_table(FOLDER / "inference.tsv"):
        text = inference_text(row["premise"], row["hypothesis"])
        written.setdefault(row["premise"], []).append(Instruction("inference", text, row["label"]))
    return [*groups, *written.values()]


def _short_answers(seed: int) -> Groups:
    return [
        [Instruction("short_answer", f"{row.passage} Question: {row.question}", row.answer)]
        for row in short_answers(SHORT_ANSWERS, seed)
    ]


def _divide(groups: Groups, rng: random.Random) -> tuple[list[Instruction], list[Instruction]]:
    rng.shuffle(groups)
    rows = sum(map(len, groups))
    wanted = min(MAX_HELD_OUT, round(HELD_OUT_SHARE * rows))
    held_out: list[Instruction] = []
    train: list[Instruction] = []
    for group in groups:
        (held_out if len(held_out) + len(group) <= wanted else train).extend(group)
    return train, held_out
