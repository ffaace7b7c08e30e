"""Draws until there are enough different things: what the generators of instruction rows share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 200
"""Draws a wanted thing, before the templates are held to have no more."""


def draw_distinct(count: int, draw: Callable[[int], T], texts_of: Callable[[T], set[str]], *, what: str) -> list[T]:
    """`count` things of which no text stands in two.

    Args:
        count: how many.
        draw: makes one, given how many there are already.
        texts_of: its texts; none says that it will not do.
        what: the things, for the error.

    Raises:
        ValueError: there are no `count` different ones.
    """
    found: list[T] = []
    seen: set[str] = set()
    tries = 0
    while len(found) < count:
        tries += 1
        if tries > TRIES * count:
            raise ValueError(f"the templates gave {len(found):,} different {what} in {tries:,} tries, not {count:,}")
        drawn = draw(len(found))
        texts = texts_of(drawn)
        if texts and not texts & seen:
            found.append(drawn)
            seen |= texts
    return found
