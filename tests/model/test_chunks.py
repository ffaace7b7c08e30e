"""Dividing rows into chunks of like length: complete, and the best there is."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.model.chunks import PASS_COSTS, like_length


def cost(chunks, lengths, device):
    return sum(len(chunk) * max(lengths[row] for row in chunk) + PASS_COSTS[device] for chunk in chunks)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40), device=st.sampled_from(["cpu", "cuda"]))
def test_every_row_is_in_one_chunk_and_a_batch_in_one_keeps_its_order(lengths, device):
    chunks = like_length(lengths, device)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
    assert len(chunks) > 1 or chunks[0] == list(range(len(lengths)))
    assert cost(chunks, lengths, device) <= cost([range(len(lengths))], lengths, device)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=7))
def test_no_other_division_has_less_padding_and_passes(lengths):
    def divisions(rows):
        """Every division of the rows, like lengths together or not."""
        if not rows:
            yield []
            return
        first, rest = rows[0], rows[1:]
        for size in range(len(rest) + 1):
            for others in itertools.combinations(rest, size):
                left = [row for row in rest if row not in others]
                for division in divisions(left):
                    yield [[first, *others], *division]

    best = min(cost(division, lengths, "cpu") for division in divisions(list(range(len(lengths)))))
    assert cost(like_length(lengths, "cpu"), lengths, "cpu") == best


def test_a_gpu_reads_a_small_batch_at_once_and_a_cpu_divides_it():
    lengths = [90, 88, 30, 29, 12, 10]
    assert like_length(lengths, "cuda") == [list(range(6))]
    assert like_length(lengths, "cpu") == [[0, 1], [2, 3], [4, 5]]
