"""Premises and hypotheses made from templates of our own, by a seed.

A family of templates makes one hypothesis and, for each of the three labels, a premise that gives it that label. So
every hypothesis stands there once with each label, and says nothing about it; the premises of the labels share their
wording wherever the family allows, so that the two have to be compared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pretraining.distinct import draw_distinct
from pretraining.inference_families import FAMILIES

ENTAILMENT, NEUTRAL, CONTRADICTION = "Entailment", "Neutral", "Contradiction"
LABELS = (ENTAILMENT, NEUTRAL, CONTRADICTION)

ASIDE_SHARE = 0.3
"""Share of the premises that get a sentence about something else before or after them."""
ASIDES = (
    *("It was a quiet day in the village.", "The rain had stopped an hour earlier.", "Nobody had expected visitors."),
    *("The radio was playing old songs.", "A dog was barking somewhere.", "The newspaper had not come yet."),
    *("Prices have risen again this year.", "The clock in the hall is broken.", "Most of the neighbours were away."),
    *("The wind was blowing from the north.", "School starts again in two weeks.", "The bridge is being repaired."),
    *("There was a smell of fresh paint.", "The harvest has been good.", "The lights went out for a minute."),
    *("All of this happened long ago.", "The family has lived here for years.", "A letter lay on the table."),
)


@dataclass(frozen=True)
class Case:
    """A hypothesis, and a premise for each label that it can have."""

    hypothesis: str
    premises: dict[str, str]


def inference_cases(count: int, seed: int) -> list[Case]:
    """`count` cases, as many of each family as of any other; no premise and no hypothesis stands there twice.

    Raises:
        ValueError: the families have no `count` different cases.
    """
    rng = random.Random(seed)

    def draw(number: int) -> Case:
        return _finished(rng, *FAMILIES[number % len(FAMILIES)](rng))

    def texts_of(case: Case) -> set[str]:
        texts = {case.hypothesis, *case.premises.values()}
        return texts if len(texts) == 1 + len(LABELS) else set()

    return draw_distinct(count, draw, texts_of, what="cases")


def _finished(rng: random.Random, hypothesis: str, *premises: list[str]) -> Case:
    chosen = [rng.choice(choices) for choices in premises]
    return Case(
        _sentence(hypothesis),
        {label: _with_aside(rng, _sentence(text)) for label, text in zip(LABELS, chosen, strict=True)},
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _with_aside(rng: random.Random, premise: str) -> str:
    if rng.random() >= ASIDE_SHARE:
        return premise
    aside = rng.choice(ASIDES)
    return f"{aside} {premise}" if rng.random() < 0.5 else f"{premise} {aside}"
