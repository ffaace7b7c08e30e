import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.data.example import Example, Split
from layerbridge.data.selection import balance, divide, hold_out, limit
from layerbridge.errors import ConfigError, DataError

ANSWERS = ("yes", "no", "maybe")


def examples_of(texts, answers=None):
    answers = answers or [ANSWERS[number % 3] for number in range(len(texts))]
    return [
        Example(id=str(number), language="en", text=text, answer=answer)
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


TEXTS = st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=2, max_size=40)
SEEDS = st.integers(0, 5)


@given(TEXTS, SEEDS, st.data())
def test_holding_out_never_leaves_a_text_on_both_sides(texts, seed, data):
    examples = examples_of(texts)
    num_rows = data.draw(st.integers(1, len(examples) - 1))
    try:
        rest, held = hold_out(examples, num_rows, seed=seed)
    except DataError:
        assert len(set(texts)) < len(texts)  # only repeated texts can make a number impossible
        return
    assert len(held) == num_rows
    assert len(rest) + len(held) == len(examples)
    assert not {example.text for example in rest} & {example.text for example in held}


@given(st.integers(4, 40), SEEDS, st.randoms(use_true_random=False))
def test_every_choice_is_independent_of_the_order_of_the_rows(count, seed, shuffler):
    examples = examples_of([f"text {number}" for number in range(count)])
    shuffled = list(examples)
    shuffler.shuffle(shuffled)
    assert set(hold_out(examples, 3, seed=seed)[1]) == set(hold_out(shuffled, 3, seed=seed)[1])
    assert set(limit(examples, 3, seed=seed)) == set(limit(shuffled, 3, seed=seed))
    assert set(balance(examples, ANSWERS, seed=seed)) == set(balance(shuffled, ANSWERS, seed=seed))


def test_another_seed_makes_another_choice():
    examples = examples_of([f"text {number}" for number in range(100)])
    assert limit(examples, 10, seed=0) != limit(examples, 10, seed=1)
    assert hold_out(examples, 10, seed=0) != hold_out(examples, 10, seed=1)


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=60), SEEDS)
def test_balancing_keeps_as_many_of_each_as_the_rarest_in_their_old_order(answers, seed):
    examples = examples_of([f"text {number}" for number in range(len(answers))], answers)
    counts = Counter(answers)
    if len(counts) < 3:
        with pytest.raises(DataError, match="no training row of"):
            balance(examples, ANSWERS, seed=seed)
        return
    kept = balance(examples, ANSWERS, seed=seed)
    assert Counter(example.answer for example in kept) == dict.fromkeys(ANSWERS, min(counts.values()))
    assert list(kept) == sorted(kept, key=lambda example: int(example.id))


@given(st.integers(1, 70), SEEDS)
def test_limiting_a_balanced_set_keeps_it_balanced_to_one_row(max_rows, seed):
    examples = examples_of([f"text {number}" for number in range(60)])
    kept = limit(examples, max_rows, seed=seed, answers=ANSWERS)
    counts = Counter(example.answer for example in kept)
    assert len(kept) == min(max_rows, 60)
    assert max(counts.values()) - min(counts[answer] for answer in ANSWERS) <= 1


SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}


@given(TEXTS, st.data())
def test_dividing_never_leaves_a_text_on_two_sides_and_measures_on_no_repeated_one(texts, data):
    answers = [data.draw(st.sampled_from(ANSWERS)) for _ in texts]
    examples = examples_of(texts, answers)
    try:
        parts = divide(examples, SHARES)
    except DataError:
        assert len(set(texts)) < len(texts)  # only repeated texts can make the shares impossible
        return
    assert sorted((e for part in parts.values() for e in part), key=lambda e: int(e.id)) == examples
    sides = [{example.text for example in part} for part in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))
    measured = [example.text for split in ("dev", "test") for example in parts[split]]
    assert all(texts.count(text) == 1 for text in measured)
    for answer, total in Counter(answers).items():
        assert [sum(e.answer == answer for e in parts[split]) for split in ("dev", "test")] == [round(0.2 * total)] * 2


@given(st.integers(5, 60), st.randoms(use_true_random=False))
def test_dividing_is_independent_of_the_order_of_the_rows_and_keeps_it(count, shuffler):
    examples = examples_of([f"text {number}" for number in range(count)])
    shuffled = list(examples)
    shuffler.shuffle(shuffled)
    parts, others = divide(examples, SHARES), divide(shuffled, SHARES)
    assert {split: set(part) for split, part in parts.items()} == {split: set(part) for split, part in others.items()}
    assert all(list(part) == [e for e in examples if e in part] for part in parts.values())


def test_a_text_goes_where_its_sha256_says():
    examples = examples_of([f"text {number}" for number in range(10)], ["yes"] * 10)
    by_hash = sorted(examples, key=lambda example: hashlib.sha256(example.text.encode()).hexdigest())
    parts = divide(examples, SHARES)
    assert [set(parts["dev"]), set(parts["test"])] == [set(by_hash[:2]), set(by_hash[2:4])]


def test_repeated_texts_that_leave_too_few_rows_are_counted():
    with pytest.raises(DataError, match=r"dev and test take 4 rows of answer 'yes', but only 2 of its 10 rows have"):
        divide(examples_of(["a"] * 8 + ["b", "c"], ["yes"] * 10), SHARES)


def test_holding_out_everything_names_both_numbers():
    with pytest.raises(ConfigError, match=r"dev_rows is 5, but there are only 5 training rows"):
        hold_out(examples_of("abcde"), 5, seed=0)


def test_holding_out_what_repeated_texts_forbid_names_the_numbers():
    with pytest.raises(DataError, match=r"dev_rows is 2, but only 0 of the 4 training rows"):
        hold_out(examples_of("aaaa"), 2, seed=0)


def test_the_hash_of_a_split_is_of_its_examples_alone():
    examples = examples_of("abc")
    split = Split.of(examples, source="local:x")
    assert split.sha256 == Split.of(examples, source="local:y").sha256
    assert len(split) == 3
    shuffled = random.Random(0).sample(examples, 3)
    others = [shuffled, examples[:2], examples_of("abd"), examples_of("abc", ["no", "no", "no"])]
    assert len({Split.of(other, source="").sha256 for other in others} | {split.sha256}) == 5
