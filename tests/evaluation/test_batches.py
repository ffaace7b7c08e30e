"""Batches by a budget of tokens: nothing lost, nothing over the budget, and smaller ones once memory has run out."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import EvaluationConfig
from layerbridge.errors import ConfigError, is_out_of_memory
from layerbridge.evaluation.batches import in_batches
from layerbridge.evaluation.predict import predict
from layerbridge.model import batches
from tests.evaluation.fakes import FakeBridge, FakeTask, make_split

lengths_of_texts = st.lists(st.integers(0, 40), max_size=60)
budgets = st.builds(EvaluationConfig, batch_tokens=st.integers(1, 200), batch_size=st.integers(1, 20))


def size(batch, lengths):
    """Tokens of a padded batch, of which each row counts one at least."""
    return len(batch) * max(1, *(lengths[index] for index in batch))


class Memory:
    """Runs batches of at most `room` tokens and says of others what an allocator says."""

    def __init__(self, lengths, room, error=None):
        self.lengths, self.room, self.tried = lengths, room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, batch):
        self.tried.append(batch)
        if size(batch, self.lengths) > self.room:
            raise self.error
        return [self.lengths[index] for index in batch]


@given(lengths_of_texts, budgets)
def test_every_text_is_in_one_batch_and_no_batch_is_over_its_budget(lengths, config):
    found = [batch for batch, _ in in_batches(lengths, config, len)]
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    in_order = [lengths[index] for batch in found for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) <= config.batch_size
        assert len(batch) == 1 or size(batch, lengths) <= config.batch_tokens


@given(lengths_of_texts, budgets)
def test_no_batch_could_have_taken_one_text_more(lengths, config):
    found = [batch for batch, _ in in_batches(lengths, config, len)]
    for batch, following in itertools.pairwise(found):
        more = [*batch, following[0]]
        assert len(more) > config.batch_size or size(more, lengths) > config.batch_tokens


@given(lengths_of_texts, budgets, st.integers(40, 200))
def test_nothing_is_lost_when_memory_runs_out(lengths, config, room):
    memory = Memory(lengths, room)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = list(in_batches(lengths, config, memory))
    assert sorted(index for batch, _ in found for index in batch) == list(range(len(lengths)))
    assert all(result == [lengths[index] for index in batch] for batch, result in found)
    failed = [size(batch, lengths) for batch in memory.tried if size(batch, lengths) > room]
    assert all(after <= before / 2 for before, after in itertools.pairwise(failed))
    assert len(told) == bool(failed)


def test_the_first_lack_of_memory_is_told_with_its_numbers():
    with pytest.warns(UserWarning, match="ran out on 8 texts of up to 10 tokens; going on with at most 40 tokens a ba"):
        list(in_batches([10] * 16, EvaluationConfig(batch_tokens=80), Memory([10] * 16, 25)))


def test_the_budget_stays_halved_for_the_rest():
    memory = Memory([10] * 12, 45)
    with pytest.warns(UserWarning, match="Memory ran out"):
        list(in_batches([10] * 12, EvaluationConfig(batch_tokens=80), memory))
    assert [len(batch) for batch in memory.tried] == [8, 4, 4, 4]


@pytest.mark.filterwarnings("ignore:Memory ran out")
def test_one_text_too_large_for_the_memory_says_what_to_lower():
    config = EvaluationConfig(max_source_tokens=300, max_new_tokens=7)
    with pytest.raises(ConfigError, match=r"one text of 90 tokens alone.*max_source_tokens \(now 300\).*\(now 7\)"):
        list(in_batches([90, 20, 20], config, Memory([90, 20, 20], 50)))


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_a_lack_of_memory_makes_batches_smaller(error, ran_out):
    assert is_out_of_memory(error) == ran_out
    memory = Memory([10] * 4, 10, error)
    if ran_out:
        with pytest.warns(UserWarning, match="Memory ran out"):
            assert len(list(in_batches([10] * 4, EvaluationConfig(), memory))) == 4
    else:
        with pytest.raises(type(error)):
            list(in_batches([10] * 4, EvaluationConfig(), memory))


@pytest.mark.filterwarnings("ignore:Memory ran out")
def test_what_the_failed_batch_held_is_free_before_the_next():
    alive = []

    class Tensor:
        def __init__(self):
            alive.append(self)

        def __del__(self):
            freed.append(True)

    freed = []

    def run(batch):
        assert len(freed) == len(tried)
        if len(batch) > 1:
            held = Tensor()
            tried.append(batch)
            alive.clear()
            raise MemoryError(str(type(held)))

    tried = []
    list(in_batches([10] * 4, EvaluationConfig(), run))
    assert len(tried) == 2


def test_a_real_allocation_that_fails_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8, device="cpu")
    assert is_out_of_memory(raised.value)


def test_predictions_are_the_same_after_memory_ran_out(monkeypatch):
    split = make_split("si", [("Sports", "Science"), ("Business", "Business"), ("Science", "x")] * 4)
    wanted = list(predict(FakeBridge(), FakeTask({}), "si", split, EvaluationConfig()))
    bridge, emptied = FakeBridge(), []
    score = bridge.score

    def small(texts, *rest, **options):
        if len(texts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(texts, *rest, **options)

    monkeypatch.setattr(bridge, "score", small)
    monkeypatch.setattr(batches, "_empty_cache", lambda: emptied.append(True))
    with pytest.warns(UserWarning, match="Memory ran out on 12 texts"):
        found = list(predict(bridge, FakeTask({}), "si", split, EvaluationConfig()))
    assert found == wanted
    assert emptied


def test_texts_are_counted_as_far_as_they_are_read():
    split = make_split("si", [("Sports", "Sports")] * 10)
    bridge = FakeBridge()
    list(predict(bridge, FakeTask({}), "si", split, EvaluationConfig(batch_tokens=12, max_source_tokens=3)))
    assert [len(batch) for batch in bridge.batches[::2]] == [4, 4, 2]
