"""Which rows are used: one file divided into splits, dev rows set aside, classes balanced, rows limited.

It is deterministic from a seed. A row's turn comes from a hash of the seed and the row itself, so a
choice depends neither on the order of the rows nor on a random generator's state, and a further row leaves most
of it as it was.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from layerbridge.data.example import Example
from layerbridge.errors import ConfigError, DataError


def hold_out(
    examples: Sequence[Example], num_rows: int, *, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Set `num_rows` rows aside; rows with the same text stay on one side. Returns (rest, held out).

    Raises:
        ConfigError: no row would be left to train on.
        DataError: repeated texts make the number impossible.
    """
    if num_rows >= len(examples):
        raise ConfigError(
            f"dev_rows is {num_rows}, but there are only {len(examples)} training rows, and some must stay. "
            f"Set task.dev_rows to less than {len(examples)}."
        )
    by_text: dict[str, list[Example]] = {}
    for example in examples:
        by_text.setdefault(example.text, []).append(example)
    held_texts: set[str] = set()
    wanted = num_rows
    for group in sorted(by_text.values(), key=lambda group: _turn(group[0].text, seed, "hold out")):
        if wanted and len(group) <= wanted:
            held_texts.add(group[0].text)
            wanted -= len(group)
    if wanted:
        raise DataError(
            f"dev_rows is {num_rows}, but only {num_rows - wanted} of the {len(examples)} training rows can "
            f"be set aside without leaving the same text in training. Drop repeated texts, or set a smaller "
            f"task.dev_rows."
        )
    rest = tuple(example for example in examples if example.text not in held_texts)
    return rest, tuple(example for example in examples if example.text in held_texts)


def divide(examples: Sequence[Example], shares: Mapping[str, float]) -> dict[str, tuple[Example, ...]]:
    """Divide the rows of one file into splits, every answer by the same shares, in their old order.

    A row's place follows from the sha256 of its text. A text that stands there more than once is kept out of all
    splits but the first: it would be on two sides, and often it has several answers.

    Args:
        examples: all rows.
        shares: split -> share of each answer's rows, 0 to 1; the first split takes what the others leave.

    Raises:
        DataError: an answer has too few texts that stand there once.
    """
    counts = Counter(example.text for example in examples)
    split_of: dict[str, str] = {}
    first, *others = shares
    for answer, total in Counter(example.answer for example in examples).items():
        texts = [e.text for e in examples if e.answer == answer and counts[e.text] == 1]
        texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        wanted = {split: round(shares[split] * total) for split in others}
        if sum(wanted.values()) > len(texts):
            raise DataError(
                f"{' and '.join(others)} take {sum(wanted.values())} rows of answer {answer!r}, but only {len(texts)} "
                f"of its {total} rows have a text that no other row has. Drop repeated texts, or add rows."
            )
        places = (split for split in others for _ in range(wanted[split]))
        split_of.update(zip(texts, places, strict=False))
    return {split: tuple(e for e in examples if split_of.get(e.text, first) == split) for split in shares}


def without_texts(examples: Sequence[Example], texts: set[str]) -> tuple[Example, ...]:
    """Return the examples whose text is not among `texts`."""
    return tuple(example for example in examples if example.text not in texts)


def balance(examples: Sequence[Example], answers: Sequence[str], *, seed: int) -> tuple[Example, ...]:
    """Keep as many rows of every answer as the rarest has, in their old order.

    Raises:
        DataError: an answer has no row.
    """
    by_answer = _by_answer(examples, answers)
    absent = [answer for answer, rows in by_answer.items() if not rows]
    if absent:
        raise DataError(
            f"balance_classes: no training row of {', '.join(map(repr, absent))} among {len(examples)} rows. "
            f"Set task.balance_classes to false, or check the labels with `layerbridge tasks validate`."
        )
    rarest = min(len(rows) for rows in by_answer.values())
    return _keep(examples, dict.fromkeys(by_answer, rarest), by_answer, seed)


def limit(
    examples: Sequence[Example], max_rows: int, *, seed: int, answers: Sequence[str] | None = None
) -> tuple[Example, ...]:
    """Keep at most `max_rows` rows, in their old order.

    With `answers` (a balanced set), the classes stay balanced: their counts differ by one at most.
    """
    if len(examples) <= max_rows:
        return tuple(examples)
    if answers is None:
        chosen = sorted(examples, key=lambda example: _row_turn(example, seed))[:max_rows]
        kept = {(example.language, example.id) for example in chosen}
        return tuple(example for example in examples if (example.language, example.id) in kept)
    by_answer = _by_answer(examples, answers)
    share, over = divmod(max_rows, len(by_answer))
    order = sorted(by_answer, key=lambda answer: _turn(answer, seed, "over"))
    return _keep(examples, {a: share + (order.index(a) < over) for a in by_answer}, by_answer, seed)


def _by_answer(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[Example]]:
    by_answer: dict[str, list[Example]] = {answer: [] for answer in answers}
    for example in examples:
        by_answer[example.answer].append(example)
    return by_answer


def _keep(
    examples: Sequence[Example], counts: dict[str, int], by_answer: dict[str, list[Example]], seed: int
) -> tuple[Example, ...]:
    kept: set[tuple[str, str]] = set()
    for answer, rows in by_answer.items():
        chosen = sorted(rows, key=lambda example: _row_turn(example, seed))[: counts[answer]]
        kept.update((example.language, example.id) for example in chosen)
    return tuple(example for example in examples if (example.language, example.id) in kept)


def _row_turn(example: Example, seed: int) -> bytes:
    return _turn(f"{example.language}\t{example.id}\t{example.text}", seed, "row")


def _turn(key: str, seed: int, purpose: str) -> bytes:
    return hashlib.sha256(f"{seed}\t{purpose}\t{key}".encode()).digest()
