"""Gradient checkpointing: the same losses and gradients, fewer activations held, and nothing else changed."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from layerbridge.config import BridgeConfig, TrainingConfig, build_config
from layerbridge.data.example import Example
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.training.recomputation import mark_layers, recompute_activations, recomputed_activations
from layerbridge.training.token_rows import TokenRows
from layerbridge.training.trainer import BridgeTrainer
from tests import tiny

TEXTS = [f"the cat sat on the mat {'one two three ' * (i % 4)}" for i in range(8)]
ANSWERS = ["positive", "one two three four"] * 4


SOFTMAX = {"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0}


def build(tiny_models, llm, fusion=SOFTMAX, like=None) -> Bridge:
    data = {"encoder": tiny_models["mt5"], "llm": tiny_models[llm], "fusion": fusion}
    return Bridge.build(build_config(BridgeConfig, data, where="test"), seed=0, like=like)


def train(bridge, folder, **options):
    """Train three steps without dev looks and return the losses and the encoder's passes."""
    training = TrainingConfig(max_steps=3, batch_size=4, eval_every=3, **options)
    examples = [Example(id=text, language="en", text=text, answer="no") for text in TEXTS]
    rows = TokenRows(examples, bridge.processor, training)
    before = bridge.encoder.num_passes
    trainer = BridgeTrainer(
        bridge, training=training, train=rows, dev=None, answers=["no"], folder=folder, progress=False
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, bridge.encoder.num_passes - before


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


def test_training_that_recomputes_reads_a_global_softmaxs_texts_twice_with_the_same_losses(tiny_models, tmp_path):
    bridge = build(tiny_models, "llama", fusion="global_softmax")
    wanted, passes = train(bridge, tmp_path)
    again = build(tiny_models, "llama", fusion="global_softmax")
    found, twice = train(again, tmp_path, gradient_checkpointing=True)
    assert len(wanted) == 3
    assert found == pytest.approx(wanted, rel=1e-5)
    assert twice == 2 * passes > 0
    assert again.recompute_states is False, "afterwards nothing is read twice"


def test_with_heads_a_global_softmax_holds_its_states_also_where_activations_are_recomputed(tiny_models, tmp_path):
    """Its texts are read once, so nothing is saved on the encoder."""
    fusion = {"name": "global_softmax", "heads": 2}
    _, passes = train(build(tiny_models, "llama", fusion=fusion), tmp_path)
    _, again = train(build(tiny_models, "llama", fusion=fusion), tmp_path, gradient_checkpointing=True)
    assert again == passes > 0


def checkpoints(llm) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in llm.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_bridges_that_share_an_llm_find_it_as_it_was(tiny_models, tmp_path, monkeypatch, fails):
    """Whether training came to its end or not."""
    first = build(tiny_models, "llama")
    before = [(module.training, vars(module).get("forward")) for module in first.llm.modules()]
    if fails:
        monkeypatch.setattr(BridgeTrainer, "training_step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(first, tmp_path, gradient_checkpointing=True)
        monkeypatch.undo()
    else:
        train(first, tmp_path, gradient_checkpointing=True)
    first.eval()
    second = build(tiny_models, "llama", like=first)
    assert second.llm is first.llm
    assert not checkpoints(second.llm)
    assert [(module.training, vars(module).get("forward")) for module in second.llm.modules()] == before
    train(second, tmp_path)  # what is found out about an LLM once is found out here
    counted = []
    layer = next(m for m in second.llm.modules() if type(m).__name__.endswith("Layer"))
    layer.register_forward_hook(lambda *_: counted.append(1))
    train(second, tmp_path)
    assert len(counted) == 3, "once a step: nothing is computed again"


def test_recomputation_ends_with_its_context(tiny_models):
    bridge = build(tiny_models, "gpt2")
    with recomputed_activations(bridge.llm):
        mark_layers(bridge.llm, True)
        assert checkpoints(bridge.llm)
    assert not checkpoints(bridge.llm)
    assert not any(module.training for module in bridge.llm.modules())
