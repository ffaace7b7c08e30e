"""How the boundary vector starts."""

import pytest
import torch
from pydantic import ValidationError

from layerbridge.config import BridgeConfig, load_recipe
from layerbridge.errors import ConfigError
from layerbridge.model import checkpoint
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_bridge
from layerbridge.model.projector import embedding_rms


def config(tiny_models, llm="llama", **parts):
    return BridgeConfig.model_validate({"encoder": tiny_models["mt5"], "llm": tiny_models[llm], **parts})


@pytest.mark.parametrize("llm", ["llama", "qwen3"])
def test_a_random_boundary_has_the_scale_of_the_llms_embeddings(tiny_models, llm):
    starts = [Bridge.build(config(tiny_models, llm, boundary="random"), seed=seed) for seed in range(40)]
    values = torch.stack([bridge.boundary.detach() for bridge in starts])
    embedding = starts[0].llm.get_input_embeddings()
    wanted = embedding_rms(embedding, embedding.weight.shape[0], embedding.weight.device)
    count = values.numel()
    assert abs(values.square().mean().sqrt().item() / wanted - 1) < 4 / (2 * count) ** 0.5  # 4 standard errors
    assert abs(values.mean().item()) < 4 * wanted / count**0.5


def test_a_random_boundary_follows_from_the_seed(tiny_models):
    first, again, other = (Bridge.build(config(tiny_models, boundary="random"), seed=s).boundary for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.requires_grad


def test_zeros_are_unchanged_and_fusion_and_projector_start_alike_with_both(tiny_models):
    zeros = Bridge.build(config(tiny_models), seed=3)
    drawn = Bridge.build(config(tiny_models, boundary="random"), seed=3)
    assert not zeros.boundary.any()
    assert drawn.boundary.any()
    for name, tensor in zeros.trained_state().items():
        assert name == "boundary" or torch.equal(tensor, drawn.trained_state()[name]), name
    assert zeros.fingerprint() != drawn.fingerprint()


def test_a_checkpoint_keeps_its_boundary_and_one_without_the_option_still_loads(tiny_models, tmp_path, monkeypatch):
    drawn = Bridge.build(config(tiny_models, boundary="random"), seed=3)
    loaded = load_bridge(drawn.save_pretrained(tmp_path / "new"))
    assert loaded.config.boundary == "random"
    assert torch.equal(loaded.boundary, drawn.boundary)

    header = checkpoint._header

    def older(bridge):
        found = header(bridge)
        del found["config"]["boundary"]
        return found

    monkeypatch.setattr(checkpoint, "_header", older)
    zeros = Bridge.build(config(tiny_models), seed=3)
    loaded = load_bridge(zeros.save_pretrained(tmp_path / "old"))
    assert loaded.config.boundary == "zeros"
    assert loaded.fingerprint() == zeros.fingerprint()


def test_another_start_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "r.yaml").write_text("{boundary: randon, task: headlines}")
    with pytest.raises(ConfigError, match=r"unknown boundary 'randon'\. Did you mean 'random'\? Known: random, zeros"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(ValidationError):
        BridgeConfig(boundary="ones")
