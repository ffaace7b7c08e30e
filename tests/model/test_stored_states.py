"""States on disk answer every question as states in memory do, and are never held."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from layerbridge.model import stored_states
from layerbridge.model.precision import PRECISIONS
from layerbridge.model.states import LiveStates
from layerbridge.model.stored_states import MixedStates, Scratch, StoredStates


def stored(states_SLE, precision="encoder", device="cpu"):
    """Stored states of some texts, and the same as live states."""
    lengths = [len(text_SLE) for text_SLE in states_SLE]
    columns = max(lengths)
    mask_BS = torch.arange(columns)[None] < torch.tensor(lengths)[:, None]
    kept = PRECISIONS[precision].keep(torch.cat(states_SLE))
    found = StoredStates(
        kept.split(lengths),
        rows_N=mask_BS.flatten().nonzero().squeeze(1).to(device),
        shape=(len(lengths), columns),
        scratch=Scratch(),
    )
    read_NLE = torch.empty(kept.states_NLE.shape)
    kept.read(0, read_NLE)
    layers = [torch.nn.utils.rnn.pad_sequence(read_NLE[:, place].split(lengths), batch_first=True) for place in
              range(read_NLE.shape[1])]  # fmt: skip
    return found, LiveStates.of([layer.to(device) for layer in layers], mask_BS.to(device))


def texts_of(lengths, num_layers, width, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, num_layers, width, generator=generator).to(dtype) for length in lengths]


def answers(states, dtype=torch.float32):
    """Everything that a fusion can ask, and its gradients."""
    generator = torch.Generator().manual_seed(5)
    direction_E = torch.randn(states.width, generator=generator).to(states.device, dtype).requires_grad_()
    num_tokens = len(states.rows_N)
    weights_NL = torch.rand(num_tokens, states.num_layers, generator=generator).to(states.device, dtype)
    weights_NL.requires_grad_()
    weights_L = torch.rand(states.num_layers, generator=generator).to(states.device, dtype).requires_grad_()
    upstream_NE = torch.randn(num_tokens, states.width, generator=generator).to(states.device, dtype)
    scores_NL, total_NE = states.scores(direction_E), states.weighted_sum(weights_NL)
    plain_NE, normalised_NE = states.layer_sum(weights_L), states.layer_sum(weights_L, normalized=True)
    asked = [scores_NL, total_NE, plain_NE, normalised_NE]
    loss = scores_NL.square().sum() + sum((one * upstream_NE).sum() for one in asked[1:])
    gradients = torch.autograd.grad(loss, [direction_E, weights_NL, weights_L])
    layers = [states.layer(place) for place in range(states.num_layers)]
    return [*asked, *gradients, states.inverse_rms(dtype), *layers]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    num_layers=st.integers(1, 4),
    width=st.sampled_from([1, 16, 70]),
    precision=st.sampled_from(sorted(PRECISIONS)),
    room=st.sampled_from([1, 5000, 2**22]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_stored_states_answer_as_live_ones_whatever_fits_the_scratch(
    lengths, num_layers, width, precision, room, dtype
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_states, "SCRATCH_BYTES", {"cpu": room, "cuda": room})
        found, live = stored(texts_of(lengths, num_layers, width, dtype), precision)
        assert torch.equal(found.rows_N, live.rows_N)
        for mine, wanted in zip(answers(found), answers(live), strict=True):
            torch.testing.assert_close(mine.float(), wanted.float(), atol=2e-3, rtol=1e-3)


def test_gradients_are_right_by_finite_differences():
    found, _ = stored(texts_of([2, 3], 3, 5, torch.float64))
    direction_E = torch.randn(5, dtype=torch.float64, requires_grad=True)
    weights_NL = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(found.scores, direction_E)
    assert torch.autograd.gradcheck(found.weighted_sum, weights_NL)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mixed_states_answer_as_live_ones_in_their_own_order(precision):
    texts = texts_of([3, 5, 2, 4], 3, 16)
    first, live_first = stored([texts[1], texts[3]], precision)
    columns = 6

    def places(rows):
        return torch.cat([row * columns + torch.arange(len(texts[row])) for row in rows])

    others = [texts[0], texts[2]]
    layers = [torch.nn.utils.rnn.pad_sequence([text[:, place] for text in others], batch_first=True) for place in
              range(3)]  # fmt: skip
    mask_bs = torch.tensor([[True, True, True], [True, True, False]])
    live = LiveStates.of(layers, mask_bs)
    mixed = MixedStates([first, live], rows_N=places([1, 3, 0, 2]), shape=(4, columns))
    wanted = MixedStates([live_first, live], rows_N=places([1, 3, 0, 2]), shape=(4, columns))
    for mine, theirs in zip(answers(mixed), answers(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    padded_BSE = mixed.pad(mixed.layer(1))
    for row, text in enumerate(texts):
        torch.testing.assert_close(padded_BSE[row, : len(text)], text[:, 1], atol=0.1, rtol=0.1)
        assert not padded_BSE[row, len(text) :].any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_peak_memory_does_not_grow_with_layers(precision, monkeypatch):
    """Beside results and scratch, which have room for fewer tokens the more layers there are."""
    monkeypatch.setattr(stored_states, "SCRATCH_BYTES", {"cpu": 2**18})

    def peak(num_layers):
        found, _ = stored(texts_of([40, 60, 80], num_layers, 256), precision)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            direction_E = torch.randn(256, requires_grad=True)
            weights_NL = torch.softmax(found.scores(direction_E), dim=-1)
            found.weighted_sum(weights_NL).sum().backward()
        held = most = 0
        for event in profiled.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    stacked = 180 * 24 * 256 * 4
    few, many = peak(2), peak(24)
    assert many < few + 0.1 * stacked


@pytest.mark.parametrize("precision", PRECISIONS)
def test_states_that_were_read_in_inference_can_be_read_in_training(precision):
    found, live = stored(texts_of([3, 4], 3, 16), precision)
    with torch.inference_mode():
        found.inverse_rms(torch.float64)
        found.scores(torch.randn(16))
    for mine, wanted in zip(answers(found), answers(live), strict=True):
        torch.testing.assert_close(mine.float(), wanted.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_states_answer_on_a_gpu_as_live_ones_do(precision, dtype, monkeypatch):
    for room in (1, 100_000, 2**26):
        monkeypatch.setattr(stored_states, "SCRATCH_BYTES", {"cpu": room, "cuda": room})
        found, live = stored(texts_of([40, 7, 60], 5, 200, dtype), precision, device="cuda")
        for mine, wanted in zip(answers(found), answers(live), strict=True):
            torch.testing.assert_close(mine.float(), wanted.float(), atol=1e-2, rtol=1e-3)
