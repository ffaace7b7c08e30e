"""Weights from logits, against bisection, the conditions of optimality and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.errors import ConfigError
from layerbridge.model.sparse_weights import WEIGHTS, entmax15, softmax, sparsemax, weights_named

ALPHA = {"sparsemax": 2.0, "entmax15": 1.5}
EVERY = pytest.mark.parametrize("weigh", [pytest.param(weigh, id=name) for name, weigh in WEIGHTS.items()])
SPARSE = pytest.mark.parametrize("name", ALPHA)

logits = st.builds(
    lambda rows, layers, scale, seed: (
        scale * torch.randn(rows, layers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ),
    rows=st.integers(1, 5),
    layers=st.integers(1, 30),
    scale=st.sampled_from([1e-6, 0.1, 1.0, 3.0, 30.0, 1e5]),
    seed=st.integers(0, 10_000),
)


def by_bisection(logits_XL, alpha):
    """Weights of the threshold at which they sum to one, found by halving."""
    x = (alpha - 1) * logits_XL
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        total = (x - middle).clamp(min=0).pow(1 / (alpha - 1)).sum(-1, keepdim=True)
        low, high = torch.where(total >= 1, middle, low), torch.where(total >= 1, high, middle)
    return (x - low).clamp(min=0).pow(1 / (alpha - 1))


def simplex_points(count, layers):
    """Corners, and points between them."""
    some = torch.distributions.Dirichlet(torch.full((layers,), 0.5, dtype=torch.float64)).sample((count,))
    return torch.cat([torch.eye(layers, dtype=torch.float64), some])


@EVERY
@settings(max_examples=50, deadline=None)
@given(logits_XL=logits, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_weights_are_not_negative_and_sum_to_one(weigh, logits_XL, dtype):
    weights = weigh(logits_XL.to(dtype))
    assert weights.dtype == dtype
    assert (weights >= 0).all()
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), dtype=dtype), atol=tolerance, rtol=0)


@SPARSE
@settings(max_examples=50, deadline=None)
@given(logits_XL=logits)
def test_sorting_finds_the_threshold_that_bisection_finds(name, logits_XL):
    found, wanted = WEIGHTS[name](logits_XL), by_bisection(logits_XL, ALPHA[name])
    torch.testing.assert_close(found, wanted, atol=1e-9 * max(1.0, logits_XL.abs().max().item()), rtol=0)


@settings(max_examples=50, deadline=None)
@given(logits_XL=logits)
def test_sparsemax_is_the_nearest_point_of_the_simplex(logits_XL):
    """p is the projection of z exactly if (z - p) . (q - p) <= 0 for every corner q."""
    weights = sparsemax(logits_XL)
    away = logits_XL - weights
    products = away - (away * weights).sum(-1, keepdim=True)  # of all corners at once
    assert products.max() <= 1e-9 * max(1.0, logits_XL.abs().max().item())


@settings(max_examples=30, deadline=None)
@given(logits_XL=logits)
def test_entmax15_has_the_largest_regularised_score_of_the_simplex(logits_XL):
    def score(weights):
        return (weights * row).sum(-1) + 4 / 3 * (weights - weights**1.5).sum(-1)

    torch.manual_seed(0)
    for row, weights in zip(logits_XL, entmax15(logits_XL), strict=True):
        others = simplex_points(200, len(row))
        nearby = 0.999 * weights + 0.001 * others
        assert score(torch.cat([others, nearby])).max() <= score(weights) + 1e-9 * max(1.0, row.abs().max().item())


@EVERY
@pytest.mark.parametrize("scale", [0.05, 0.7, 3.0])
def test_the_written_gradient_is_that_of_finite_differences(weigh, scale):
    torch.manual_seed(0)
    logits_XL = scale * torch.randn(3, 2, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(weigh, (logits_XL.requires_grad_(),))


@EVERY
def test_any_axes_may_stand_before_the_layers(weigh):
    logits_XL = torch.randn(3, 2, 7, dtype=torch.float64)
    weights = weigh(logits_XL)
    for row in range(3):
        torch.testing.assert_close(weights[row, 1], weigh(logits_XL[row, 1]))


@EVERY
def test_a_constant_added_to_all_logits_changes_nothing(weigh):
    logits_XL = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(weigh(logits_XL + 1000.0), weigh(logits_XL), atol=1e-9, rtol=0)


@EVERY
def test_alike_logits_give_alike_weights_and_one_layer_has_all(weigh):
    torch.testing.assert_close(weigh(torch.full((2, 5), -3.0)), torch.full((2, 5), 0.2))
    assert torch.equal(weigh(torch.tensor([[1e30]])), torch.ones(1, 1))
    torch.testing.assert_close(weigh(torch.tensor([7.0, -1e9, 7.0, -1e9])), torch.tensor([0.5, 0.0, 0.5, 0.0]))


@EVERY
def test_hot_logits_are_mixed_alike_and_cold_ones_not_at_all(weigh):
    logits_XL = torch.tensor([0.3, 1.0, -2.0, 0.9])
    torch.testing.assert_close(weigh(logits_XL / 1e6), torch.full((4,), 0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(weigh(logits_XL / 1e-3), torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_the_lead_that_takes_all_is_1_of_sparsemax_and_2_of_entmax15():
    for weigh, lead in ((sparsemax, 1.0), (entmax15, 2.0)):
        just, short = (torch.tensor([lead + extra, 0.0, 0.0], dtype=torch.float64) for extra in (0.0, -0.01))
        assert torch.equal(weigh(just), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        assert (weigh(short) > 0).all()
    assert (softmax(torch.tensor([50.0, 0.0, 0.0])) > 0).all()


def test_entmax15_lies_between_softmax_and_sparsemax():
    torch.manual_seed(0)
    logits_XL = torch.randn(200, 24)
    counts = [(weigh(logits_XL) > 0).sum(-1) for weigh in (sparsemax, entmax15, softmax)]
    assert (counts[0] <= counts[1]).all()
    assert (counts[1] <= counts[2]).all()
    assert counts[0].float().mean() < counts[1].float().mean() < counts[2].float().mean() == 24


@SPARSE
def test_a_layer_without_weight_gets_no_gradient_and_the_others_share_theirs(name):
    logits_L = torch.tensor([1.0, 0.8, 0.6, -9.0, -9.0], requires_grad=True)
    weights = WEIGHTS[name](logits_L)
    weights.backward(torch.tensor([3.0, -1.0, 2.0, 100.0, -100.0]))
    assert not weights[3:].any()
    assert not logits_L.grad[3:].any()
    assert logits_L.grad[:3].abs().min() > 0
    assert logits_L.grad.sum().abs() < 1e-6


def test_unknown_weights_are_named_with_the_nearest_and_all_known_ones():
    with pytest.raises(
        ConfigError, match=r"Unknown weights 'entmax'\. Did you mean 'entmax15'\? Known: entmax15, soft"
    ):
        weights_named("entmax")
