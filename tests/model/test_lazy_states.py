"""States that are read when they are asked for, against the layers as the encoder hands them over padded."""

import threading
import weakref

import pytest
import torch

from layerbridge.config import EncoderConfig
from layerbridge.model import found_out, lazy_states
from layerbridge.model.bases import load_encoder_base
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.model.lazy_states import LazyStates
from layerbridge.model.states import LiveStates
from tests import tiny

TEXTS = ["the cat sat on the mat the cat sat on the mat the cat sat", "one", "one two", "ශ්‍රී ලංකාව positive one two"]


@pytest.fixture(params=[*tiny.ENCODERS, *tiny.OTHER_ENCODERS])
def read(request, tiny_models):
    """An encoder and a batch of texts of very different length."""
    return encoder_and_batch(tiny_models[request.param])


def encoder_and_batch(name, layers="all"):
    base = load_encoder_base(EncoderConfig(name=name), torch.device("cpu"))
    batch = base.tokenizer(TEXTS, padding=True, return_tensors="pt")
    return FrozenEncoder(base.model, layers), batch["input_ids"], batch["attention_mask"].bool()


def padded(encoder, ids, mask):
    return LiveStates.of(encoder(ids, mask), mask)


def close(found, wanted, **options):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, **options)


def test_streamed_layers_are_the_layers(read):
    encoder, ids, mask = read
    found = {}
    encoder.stream(ids, mask, found.__setitem__)
    assert set(found_out._FOUND[encoder.model].values()) == {True}  # read off the blocks, for every architecture here
    for place, layer in enumerate(encoder(ids, mask)):
        assert torch.equal(found[place], layer)


@pytest.mark.parametrize("layers", ["last:2", (0, 3, 1)])
def test_chosen_layers_are_streamed_by_their_place(tiny_models, layers):
    encoder, ids, mask = encoder_and_batch(tiny_models["mt5"], layers)
    found = {}
    encoder.stream(ids, mask, found.__setitem__)
    assert sorted(found) == list(range(len(encoder.layer_numbers)))
    for place, layer in enumerate(encoder(ids, mask)):
        assert torch.equal(found[place], layer)


def test_an_architecture_that_cannot_be_streamed_hands_its_layers_over_at_the_end(tiny_models, monkeypatch):
    encoder, ids, mask = encoder_and_batch(tiny_models["mt5"])
    monkeypatch.setattr("layerbridge.model.encoder.stack_of", lambda model, count: torch.nn.ModuleList())
    found = {}
    encoder.stream(ids, mask, found.__setitem__)
    assert encoder.num_passes == 1
    for place, layer in enumerate(encoder(ids, mask)):
        assert torch.equal(found[place], layer)


def test_all_that_is_asked_equals_the_padded_batch(read):
    encoder, ids, mask = read
    lazy, wanted = LazyStates(encoder, ids, mask), padded(encoder, ids, mask)
    assert len(lazy.passes) > 1
    torch.manual_seed(0)
    direction = torch.randn(encoder.width)
    weights_BSL = torch.rand(*mask.shape, lazy.num_layers)
    weights_L = torch.rand(lazy.num_layers)

    def packed(states, values_BSX):
        return values_BSX.flatten(0, 1)[states.rows_N]

    for ask in (
        lambda states: states.layer(1),
        lambda states: states.layer_sum(weights_L),
        lambda states: states.layer_sum(weights_L, normalized=True),
        lambda states: states.scores(direction),
        lambda states: states.inverse_rms(torch.float32),
        lambda states: states.weighted_sum(packed(states, weights_BSL)),
        lambda states: states.layer(0),
    ):
        found = ask(lazy)
        assert len(found) == int(mask.sum())
        close(lazy.pad(found), wanted.pad(ask(wanted)))


@pytest.mark.parametrize("normalized", [False, True])
def test_recomputed_sums_have_the_gradients_of_held_ones(read, normalized):
    encoder, ids, mask = read
    weights = torch.rand(len(encoder.layer_numbers))
    upstream_BSE = torch.randn(*mask.shape, encoder.width)
    gradients = []
    for recompute in (False, True):
        states = LazyStates(encoder, ids, mask, recompute=recompute)
        weights_L = weights.clone().requires_grad_(True)
        before = encoder.num_passes
        total = states.layer_sum(weights_L, normalized=normalized)
        total.backward(upstream_BSE.flatten(0, 1)[states.rows_N])
        assert encoder.num_passes - before == len(states.passes) * (2 if recompute else 1)
        assert (states._held is None) is recompute
        gradients.append(weights_L.grad)
    close(gradients[1], gradients[0])


def test_a_sum_holds_one_layer_at_a_time(tiny_models, monkeypatch):
    encoder, ids, mask = encoder_and_batch(tiny_models["mt5"])
    states = LazyStates(encoder, ids, mask)
    states.layer_sum(torch.ones(3))  # finds out that this encoder streams
    alive, most = [], []
    scaled = lazy_states._scaled

    def watch(states_nE, dtype, normalized):
        most.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(states_nE))
        return scaled(states_nE, dtype, normalized)

    monkeypatch.setattr(lazy_states, "_scaled", watch)
    with torch.no_grad():
        states.layer_sum(torch.ones(3))
    assert len(most) == 3 * len(states.passes)
    assert max(most) <= 1  # the layer before, which the next block still reads


def test_another_thread_reading_with_the_same_encoder_adds_nothing_to_a_sum(tiny_models):
    encoder, ids, mask = encoder_and_batch(tiny_models["mt5"])
    states, weights_L = LazyStates(encoder, ids, mask), torch.tensor([0.5, 0.3, 0.2])
    wanted = states.layer_sum(weights_L)
    read = states.read

    def interrupted(one, on_layer):
        def between(place, states_nE):
            on_layer(place, states_nE)
            if place == 0:  # the hooks are there, and another thread comes
                other = threading.Thread(target=encoder, args=(one.ids_bs, one.mask_bs))
                other.start()
                other.join()

        read(one, between)

    states.read = interrupted
    assert torch.equal(states.layer_sum(weights_L), wanted)


def test_an_encoder_that_trains_is_read_layer_by_layer_where_no_gradient_is_wanted(tiny_models):
    encoder, ids, mask = encoder_and_batch(tiny_models["xlmr"])
    encoder.unfreeze_biases()
    states = LazyStates(encoder, ids, mask)
    with torch.no_grad():
        states.layer_sum(torch.ones(3))
    assert states._held is None
    assert states.layer(0).requires_grad


def test_gradients_of_a_training_encoder_are_those_of_one_padded_batch(tiny_models):
    encoder, ids, mask = encoder_and_batch(tiny_models["xlmr"])
    encoder.unfreeze_biases()
    direction = torch.randn(encoder.width)
    gradients = []
    for states in (LazyStates(encoder, ids, mask), padded(encoder, ids, mask)):
        encoder.zero_grad()
        weights_NL = torch.softmax(states.scores(direction), dim=-1)
        states.weighted_sum(weights_NL).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.requires_grad and p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    close(gradients[0], gradients[1])
