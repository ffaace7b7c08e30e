"""States kept in fewer bits differ from the encoder's by no more than their scales allow, and say by how much."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.errors import ConfigError
from layerbridge.model.precision import BLOCK, PRECISIONS, find_precision, measure_error

sizes = st.tuples(st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 3, 63, 64, 65, 128, 200]))


def draw_states(size, seed, magnitude=1.0, outlier=1.0, dtype=torch.float32):
    """Random states, some dimensions of which are larger than the others by a factor."""
    generator = torch.Generator().manual_seed(seed)
    states_NLE = torch.randn(size, generator=generator) * magnitude
    states_NLE[:, :, :: max(1, size[2] // 3)] *= outlier
    return states_NLE.to(dtype)


def read_back(kept):
    out_NLE = torch.empty(kept.states_NLE.shape)
    kept.read(0, out_NLE)
    return out_NLE


@settings(deadline=None)
@given(
    size=sizes,
    seed=st.integers(0, 99),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e5, 1e25]),
    outlier=st.sampled_from([1.0, 1e3]),
)
def test_in_8_bits_no_value_is_off_by_more_than_half_a_step(size, seed, magnitude, outlier):
    states_NLE = draw_states(size, seed, magnitude, outlier)
    kept = PRECISIONS["int8"].keep(states_NLE)
    steps_NLE = kept.scales_NLG.float().repeat_interleave(BLOCK, dim=-1)[..., : size[2]] * kept.columns_LE.float()
    difference_NLE = (read_back(kept) - states_NLE).abs()
    assert bool((difference_NLE <= 0.5001 * steps_NLE).all())


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 99), magnitude=st.sampled_from([1e-30, 1.0, 1e25]))
def test_in_bfloat16_no_value_is_off_by_more_than_its_rounding(size, seed, magnitude):
    states_NLE = draw_states(size, seed, magnitude)
    difference_NLE = (read_back(PRECISIONS["bfloat16"].keep(states_NLE)) - states_NLE).abs()
    assert bool((difference_NLE <= 2**-8 * states_NLE.abs()).all())


@pytest.mark.parametrize("name", PRECISIONS)
@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_the_stated_error_is_the_measured_one_and_what_was_kept_is_untouched(name, size, seed, dtype):
    states_NLE = draw_states(size, seed, dtype=dtype)
    before_NLE = states_NLE.clone()
    kept = PRECISIONS[name].keep(states_NLE)
    assert torch.equal(states_NLE, before_NLE)
    found = measure_error(states_NLE, kept)
    difference_NLE = read_back(kept).double() - states_NLE.double()
    by_layer_L = difference_NLE.norm(dim=(0, 2)) / states_NLE.double().norm(dim=(0, 2))
    assert found.overall == pytest.approx(float(difference_NLE.norm() / states_NLE.double().norm()), rel=1e-3, abs=1e-7)
    assert found.worst_layer == pytest.approx(float(by_layer_L.max()), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("outlier", [1.0, 100.0, 10_000.0])
def test_dimensions_far_larger_than_the_others_do_not_cost_these_their_values(outlier):
    """One scale for such a block alone would leave nothing of the others: their error would be 1."""
    torch.manual_seed(0)
    states_NLE = torch.randn(200, 2, 256)
    states_NLE[:, :, 7] *= outlier
    read_NLE = read_back(PRECISIONS["int8"].keep(states_NLE))
    others = [number for number in range(256) if number != 7]
    for part in (others, [7]):
        error = float((read_NLE - states_NLE)[..., part].norm() / states_NLE[..., part].norm())
        assert error < 0.01


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 9), data=st.data())
def test_parts_texts_and_single_layers_read_what_the_whole_reads(size, seed, data):
    name = data.draw(st.sampled_from(sorted(PRECISIONS)))
    kept = PRECISIONS[name].keep(draw_states(size, seed))
    whole_NLE = read_back(kept)
    start = data.draw(st.integers(0, size[0]))
    out_nLE = torch.empty(size[0] - start, *size[1:])
    kept.read(start, out_nLE)
    assert torch.equal(out_nLE, whole_NLE[start:])
    texts = kept.split([start, size[0] - start])
    assert torch.equal(torch.cat([read_back(text) for text in texts]), whole_NLE)
    for place in range(size[1]):
        out_SE = torch.empty(size[0], size[2])
        kept.layer(place, out_SE)
        assert torch.equal(out_SE, whole_NLE[:, place])


@pytest.mark.parametrize("name", PRECISIONS)
def test_states_of_zeros_are_read_as_zeros_without_an_error(name):
    zeros_NLE = torch.zeros(3, 2, 70)
    kept = PRECISIONS[name].keep(zeros_NLE)
    assert torch.equal(read_back(kept), zeros_NLE)
    assert measure_error(zeros_NLE, kept) == (0.0, 0.0)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("width", [63, 64, 65, 1024])
def test_the_bytes_of_a_token_are_counted_as_they_are(name, width):
    precision = PRECISIONS[name]
    for tokens in (1, 10):
        kept = precision.keep(torch.randn(tokens, 2, width))
        size = sum(tensor.numel() * tensor.itemsize for tensor in kept.tensors().values())
        assert size == tokens * precision.bytes_a_token(2, width, 4) + precision.bytes_a_shard(2, width)


def test_an_unknown_precision_is_answered_with_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"float16.*bfloat16, encoder, int8"):
        find_precision("float16")
