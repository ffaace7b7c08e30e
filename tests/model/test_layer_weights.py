"""Layer weights of many texts: those of each alone, with its own tokens and no padding."""

import dataclasses

import pytest
import torch

from layerbridge.errors import DataError
from tests import tiny
from tests.model.test_bridge import TEXTS, make


@pytest.mark.parametrize("encoder", [*tiny.ENCODERS, *tiny.OTHER_ENCODERS])
@pytest.mark.parametrize("fusion", ["transformer_softmax", "global_softmax", "last_layer"])
def test_weights_together_equal_one_by_one(tiny_models, encoder, fusion):
    bridge = make(tiny_models, encoder, fusion=fusion)
    texts = TEXTS * 2
    alone = [bridge.layer_weights([text])[0] for text in texts]
    for budget in ({}, {"batch_tokens": 30}, {"batch_size": 3}):
        for text, found, wanted in zip(texts, bridge.layer_weights(texts, **budget), alone, strict=True):
            assert (found.text, found.tokens, found.layers) == (text, wanted.tokens, bridge.encoder.layer_numbers)
            assert len(found.tokens) == bridge.count_source_tokens([text])[0]
            torch.testing.assert_close(found.weights, wanted.weights, atol=1e-5, rtol=1e-4)


def test_weights_are_one_row_a_token_and_sum_to_one(tiny_models):
    (found,) = make(tiny_models).layer_weights(["the cat"])
    assert found.layers == (1, 2, 3)
    assert found.weights.shape == (len(found.tokens), 3)
    assert (found.weights.dtype, found.weights.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(found.tokens)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.text = "another"


def test_a_cut_text_shows_the_tokens_that_were_read(tiny_models):
    with pytest.warns(UserWarning, match="longer than 6 encoder tokens"):
        (found,) = make(tiny_models).layer_weights(["cat " * 50], max_source_tokens=6)
    assert len(found.tokens) == len(found.weights) == 6
    assert found.tokens[-1] == "</s>"


def test_no_texts_are_refused(tiny_models):
    with pytest.raises(DataError, match="Got no texts"):
        make(tiny_models).layer_weights([])
