"""Gradient checkpointing: the same losses and gradients, fewer activations held, and nothing else changed."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from layerbridge.config import BridgeConfig, build_config
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.training.recomputation import mark_layers, recompute_activations
from tests import tiny

TEXTS = [f"the cat sat on the mat {'one two three ' * (i % 4)}" for i in range(8)]
ANSWERS = ["positive", "one two three four"] * 4


def build(tiny_models, llm) -> Bridge:
    data = {
        "encoder": tiny_models["mt5"],
        "llm": tiny_models[llm],
        "fusion": {"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0},
    }
    return Bridge.build(build_config(BridgeConfig, data, where="test"), seed=0)


def learn(bridge):
    """Return loss, gradients, and the bytes of different tensors that the forward pass leaves for the backward pass."""
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in bridge.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = bridge.loss(bridge.processor(TEXTS, answers=ANSWERS))
    num_bytes = sum(size for place, size in held.items() if place not in weights)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in bridge.trained_parameters().items()}
    bridge.zero_grad()
    return loss.item(), gradients, num_bytes


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_recomputed_activations_give_the_same_gradients_and_are_not_held(tiny_models, llm):
    bridge = build(tiny_models, llm)
    bridge.train()
    loss, gradients, held = learn(bridge)
    recompute_activations(bridge.llm)
    mark_layers(bridge.llm, True)
    passes = []
    layer = next(m for m in bridge.llm.modules() if type(m).__name__.endswith(("Layer", "Block")))
    inside = next(child for child in layer.children() if any(True for _ in child.parameters()))
    inside.register_forward_hook(lambda *_: passes.append(1))
    again, recomputed, held_now = learn(bridge)
    assert len(passes) == 2, "once forward, and once more in the backward pass"
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)
    assert held_now < 0.6 * held


def test_nothing_inside_a_layer_leaves_eval_mode(tiny_models):
    """Dropout inside the LLM stays off."""
    bridge = build(tiny_models, "gpt2")
    recompute_activations(bridge.llm)
    bridge.train()
    mark_layers(bridge.llm, True)
    training = [name for name, module in bridge.llm.named_modules() if module.training]
    assert training == ["transformer.h.0", "transformer.h.1"]
    bridge.eval()
    assert not any(module.training for module in bridge.modules())


def test_an_llm_that_cannot_recompute_is_refused(tiny_models):
    bridge = build(tiny_models, "llama")
    bridge.llm.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="the layers of a llama LLM cannot compute their activations again"):
        recompute_activations(bridge.llm)
