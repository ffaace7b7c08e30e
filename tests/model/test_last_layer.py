"""The last layer at wanted positions alone: the same logits and gradients, and fewer positions computed."""

import contextlib
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerbridge.config import LoraConfig
from layerbridge.model.last_layer import _by_position, last_layer_at, trims
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make

PLACES = torch.tensor([1, 4, 5, 8])


def load(tiny_models, kind):
    return AutoModelForCausalLM.from_pretrained(tiny_models[kind]).eval()


@pytest.mark.parametrize("kind", tiny.LLMS)
def test_logits_and_gradients_are_those_of_the_whole_layer(tiny_models, kind):
    llm = load(tiny_models, kind)
    torch.manual_seed(0)
    embeds_BTD = torch.randn(2, 9, tiny.WIDTH, requires_grad=True)
    upstream = torch.randn(2, len(PLACES), tiny.VOCABULARY)
    found = []
    for cut in (False, True):
        embeds_BTD.grad = None
        if cut:
            with last_layer_at(llm, PLACES, 9):
                logits = llm(inputs_embeds=embeds_BTD, logits_to_keep=PLACES).logits
        else:
            logits = llm(inputs_embeds=embeds_BTD, logits_to_keep=PLACES).logits
        logits.backward(upstream)
        found.append((logits.detach(), embeds_BTD.grad.clone()))
    assert trims(llm)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llm.modules())


@pytest.mark.parametrize("kind", tiny.LLMS)
def test_feed_forward_of_the_last_layer_reads_the_wanted_positions_alone(tiny_models, kind):
    llm = load(tiny_models, kind)
    assert trims(llm)
    widths = []
    part = [module for name, module in llm.named_modules() if name.endswith(".mlp")][-1]
    inner = next(module for module in part.children())
    inner.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    with last_layer_at(llm, PLACES, 9):
        llm(inputs_embeds=torch.randn(1, 9, tiny.WIDTH), logits_to_keep=PLACES)
    assert widths == [len(PLACES)]


def test_training_and_scoring_use_it(tiny_models):
    bridge = make(tiny_models)
    bridge.loss(bridge.processor(TEXTS, answers=["positive"] * 4))
    bridge.score(TEXTS, ANSWERS)  # each finds out first what the LLM allows
    read = []
    last = bridge.llm.model.layers[-1].mlp.gate_proj
    hook = last.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[0] * args[0].shape[1]))
    inputs = bridge.processor(TEXTS, answers=["positive"] * 4)
    bridge.loss(inputs)
    bridge.score(TEXTS, ["one"])
    hook.remove()
    nodes = len(bridge.processor.answer_ids(["one"])[0])  # the prefix's last position and all tokens but the end
    assert read[0] == inputs.labels.numel()
    assert sum(read[1:]) == len(TEXTS) * nodes


def test_adapters_in_the_last_layer_train_alike(tiny_models, monkeypatch):
    pytest.importorskip("peft")
    options = {"lora": LoraConfig(rank=2, target_modules=("q_proj", "gate_proj"))}
    bridge = make(tiny_models, llm_options=options)
    inputs = bridge.processor(TEXTS, answers=["positive", "no", "one", "two"])
    gradients = []
    monkeypatch.setattr("layerbridge.model.bridge.last_layer_at", lambda *args: contextlib.nullcontext())
    for form in ("_packed_logits", "_padded_logits"):  # the padded form now computes all of the last layer
        bridge.zero_grad(set_to_none=True)
        logits_AV, targets_A = getattr(bridge, form)(inputs, inputs.labels)
        torch.nn.functional.cross_entropy(logits_AV, targets_A).backward()
        gradients.append({name: p.grad for name, p in bridge.trained_parameters().items()})
    assert any("layers.1.self_attn.q_proj" in name for name in gradients[0])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=2e-5, rtol=2e-3)


def test_a_layer_of_unknown_parts_is_computed_whole(tiny_models, monkeypatch):
    llm = load(tiny_models, "llama")
    monkeypatch.setattr("layerbridge.model.last_layer.BY_POSITION", ("another_part",))
    assert _by_position(llm) == []
    assert not trims(llm)
    with last_layer_at(llm, PLACES, 9):
        assert llm(inputs_embeds=torch.randn(1, 9, tiny.WIDTH)).logits.shape[1] == 9


def test_a_part_that_does_not_act_by_position_is_found_out(tiny_models, monkeypatch):
    llm = load(tiny_models, "llama")
    monkeypatch.setattr("layerbridge.model.last_layer.BY_POSITION", ("mlp", "k_proj"))
    assert not trims(llm)


def test_another_thread_generating_with_the_same_llm_is_left_alone(tiny_models):
    llm = load(tiny_models, "llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted, found = llm(ids).logits, []
    with last_layer_at(llm, PLACES, 9):
        other = threading.Thread(target=lambda: found.append(llm(ids).logits.detach()))
        other.start()
        other.join()
    assert torch.equal(found[0], wanted)
