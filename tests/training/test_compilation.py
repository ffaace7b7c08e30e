"""A compiled LLM computes what it computes uncompiled, at any batch size and length."""

import shutil

import pytest
import torch

from layerbridge.config import BridgeConfig, TrainingConfig, build_config
from layerbridge.data.example import Example
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.training.compilation import check_compilable, compiled_llm
from layerbridge.training.token_rows import TokenRows
from layerbridge.training.trainer import BridgeTrainer

COMPILERS = ("c++", "g++", "clang++")
TEXTS = ["the cat sat on the mat", "one", "Habari ya asubuhi, one two three", "neutral positive", "the mat " * 9]
ANSWERS = ["positive", "no", "one two three four", "negative", "no"]


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_llm_gives_the_same_losses_and_gradients_at_any_size(tiny_models):
    data = {
        "encoder": tiny_models["mt5"],
        "llm": tiny_models["llama"],
        "fusion": {"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0},
    }
    bridge = Bridge.build(build_config(BridgeConfig, data, where="test"), seed=0)
    bridge.train()

    def learn(rows):
        bridge.zero_grad()
        loss = bridge.loss(bridge.processor([TEXTS[i] for i in rows], answers=[ANSWERS[i] for i in rows]))
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in bridge.trained_parameters().items()}

    batches = ([0, 1], [2, 3, 4], [4], [0, 1, 2, 3, 4])
    wanted = [learn(rows) for rows in batches]
    scores = bridge.score(TEXTS, ["positive", "no"])
    written = bridge.generate(TEXTS, max_new_tokens=3)
    torch._dynamo.reset()
    bridge.train()
    with compiled_llm(bridge.llm):
        for rows, (loss, gradients) in zip(batches, wanted, strict=True):
            found, ours = learn(rows)
            assert found == pytest.approx(loss, rel=1e-5)
            for name, gradient in gradients.items():
                torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4)
        assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "something was compiled"
        torch.testing.assert_close(bridge.score(TEXTS, ["positive", "no"]), scores)
        assert bridge.generate(TEXTS, max_new_tokens=3) == written


@pytest.mark.parametrize("other", ["gradient_checkpointing", "shard_llm"])
def test_options_never_tried_with_a_compiled_llm_are_refused(other):
    with pytest.raises(ConfigError, match=rf"training\.torch_compile and training\.{other} are both on"):
        check_compilable(TrainingConfig(**{"torch_compile": True, other: True}))
    check_compilable(TrainingConfig(**{other: True}))


def test_training_uses_the_compiled_pass_and_dev_looks_do_not(tiny_models, tmp_path, monkeypatch):
    passes = []

    def counted(function, dynamic):
        assert dynamic

        def called(*args, **kwargs):
            passes.append(torch.is_grad_enabled())
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr("torch.compile", counted)
    bridge = Bridge.build(BridgeConfig(encoder={"name": tiny_models["mt5"]}, llm={"name": tiny_models["llama"]}))
    training = TrainingConfig(torch_compile=True, max_steps=3, batch_size=2, eval_every=1)
    examples = [Example(id=text, language="en", text=text, answer="no") for text in TEXTS]
    rows = TokenRows(examples, bridge.processor, training)
    for number in (1, 2):
        trainer = BridgeTrainer(
            bridge, training=training, train=rows, dev=rows, answers=["no", "positive"], folder=tmp_path, progress=False
        )
        assert "forward" not in vars(bridge.llm), "not before it trains"
        trainer.train()
        assert "forward" not in vars(bridge.llm), "and as it was afterwards"
        assert passes == [True] * 3 * number, "compiled once, not what was compiled before"
