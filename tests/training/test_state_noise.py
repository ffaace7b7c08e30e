"""Noise on what the projector reads: how large it is for each state, and that training alone knows it."""

import pytest
import torch

from layerbridge.model.projector import add_noise
from layerbridge.results import setup_sha256
from layerbridge.training.trainer import _training_pass
from tests.model.test_bridge import TEXTS, make
from tests.training.test_train import recipe, rows  # noqa: F401  (a fixture)


def test_noise_has_the_asked_spread_for_each_state():
    torch.manual_seed(0)
    states_MZ = torch.randn(3, 200_000, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [50.0]])
    added_MZ = add_noise(states_MZ, 1.5) - states_MZ
    rms_M = states_MZ.square().mean(dim=1).sqrt()
    torch.testing.assert_close(added_MZ.std(dim=1), 1.5 * rms_M, rtol=0.01, atol=0)
    assert (added_MZ.mean(dim=1).abs() < 0.02 * rms_M).all()


def test_a_state_of_zeros_has_a_gradient():
    states_MZ = torch.zeros(2, 8, requires_grad=True)
    add_noise(states_MZ, 1.0).sum().backward()
    assert torch.isfinite(states_MZ.grad).all()


def test_longer_states_drown_no_noise_so_a_fusion_gains_nothing_by_them():
    state_MZ = torch.randn(4, 32, dtype=torch.float64)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    noisy_MZ = add_noise(scale * state_MZ, 2.0)
    direction_MZ = noisy_MZ / noisy_MZ.norm(dim=-1, keepdim=True)
    (grad,) = torch.autograd.grad((direction_MZ * torch.randn_like(state_MZ)).sum(), scale)
    assert abs(grad) < 1e-12


@pytest.mark.parametrize("pooling", ["none", "mean", "append_mean"])
def test_training_alone_reads_noisy_states_and_as_noisy_as_the_recipe_says(tiny_models, rows, pooling):  # noqa: F811
    bridge = make(tiny_models, fusion="layer_mean", pooling=pooling)
    inputs = bridge.processor(TEXTS)

    def soft(seed):
        torch.manual_seed(seed)
        return bridge.soft_tokens(inputs).tokens_MX

    plain = soft(0)
    with _training_pass(bridge, recipe(tiny_models, rows, state_noise=1.0).training):
        assert torch.equal(soft(1), plain), "a look at the dev rows is without it"
        bridge.train()
        noisy, again, other = soft(1), soft(1), soft(2)
        assert torch.equal(noisy, again)
        assert not torch.allclose(noisy, plain)
        assert not torch.allclose(noisy, other)
    assert torch.equal(soft(1), plain), "afterwards nothing of it is left, whatever the mode"


def test_noise_makes_another_set_up(tiny_models, rows):  # noqa: F811
    prints = [
        setup_sha256(recipe(tiny_models, rows, **keys)) for keys in ({}, {"state_noise": 0.0}, {"state_noise": 1.0})
    ]
    assert prints[0] == prints[1] != prints[2]
