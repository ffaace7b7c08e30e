"""Taking in the published code's own state dict."""

import pytest
import torch
from benchmarks.published_fusion import PublishedTransformerSoftmax

from layerbridge.config import BridgeConfig, EncoderConfig, LLMConfig
from layerbridge.errors import CheckpointError
from layerbridge.model.published import import_published
from tests import tiny

TEXTS = ["the cat sat", "one two three four"]


def config(tiny_models):
    return BridgeConfig(encoder=EncoderConfig(name=tiny_models["mt5"]), llm=LLMConfig(name=tiny_models["llama"]))


def published_state(fusion):
    """A whole-model state dict as the published code saves it: trained parts, and frozen ones beside them."""
    torch.manual_seed(3)
    state = {
        "mapping.mlp.fc.weight": torch.randn(tiny.WIDTH, tiny.WIDTH),
        "mapping.mlp.fc.bias": torch.randn(tiny.WIDTH),
        "mapping.end_boundary": torch.randn(1, 1, tiny.WIDTH),
        "encoder_mt.encoder.block.0.weight": torch.randn(3, 3),
        "model_llm.lm_head.weight": torch.randn(5, 3),
    }
    module = None
    if fusion == "transformer_softmax":
        module = PublishedTransformerSoftmax(tiny.BLOCKS, tiny.WIDTH, 20)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        state |= {f"encoder_mt.layer_weights.{name}": p.detach() for name, p in module.named_parameters()}
    elif fusion == "global_softmax_published":
        state |= {"encoder_mt.layer_weights_lb": torch.randn(tiny.BLOCKS) * 1e-2, "encoder_mt.temp": torch.tensor(1e-3)}
    return state, module


@pytest.mark.parametrize("fusion", ["last_layer", "global_softmax_published", "transformer_softmax"])
def test_every_published_hand_over_is_taken_in(tiny_models, tmp_path, fusion):
    state, module = published_state(fusion)
    torch.save(state, tmp_path / "pytorch_model.bin")
    bridge = import_published(tmp_path, config(tiny_models))
    assert bridge.config.fusion.name == fusion
    assert torch.equal(bridge.boundary, state["mapping.end_boundary"][0, 0])
    inputs = bridge.processor(TEXTS)
    layers = bridge.encoder(inputs.source_ids, inputs.source_mask)
    fused = bridge.fuse(inputs).states_BSE
    if fusion == "transformer_softmax":
        expected, _ = module.eval()(layers, inputs.source_mask)
    elif fusion == "last_layer":
        expected = layers[-1] * inputs.source_mask[..., None]
    else:
        weights = torch.softmax((100 + 1e5 * 1e-3) * state["encoder_mt.layer_weights_lb"], 0)
        expected = sum(w * layer for w, layer in zip(weights, layers, strict=True)) * inputs.source_mask[..., None]
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-4)
    soft = torch.nn.functional.linear(fused, state["mapping.mlp.fc.weight"], state["mapping.mlp.fc.bias"])
    torch.testing.assert_close(bridge.projector(fused), soft)


def test_another_width_is_refused(tiny_models, tmp_path):
    state, _ = published_state("last_layer")
    state["mapping.mlp.fc.weight"] = torch.randn(tiny.WIDTH, 7)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"projector\.layers\.weight has shape \(32, 7\), wanted \(32, 32\)"):
        import_published(tmp_path, config(tiny_models))


def test_a_foreign_state_dict_is_refused_with_what_is_missing(tiny_models, tmp_path):
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'mapping\.mlp\.fc\.weight'.*holds 1 tensors"):
        import_published(tmp_path, config(tiny_models))


class Payload:
    def __reduce__(self):
        import os

        return (os.system, ("echo ran",))


def test_pickled_objects_are_never_loaded(tiny_models, tmp_path, capfd):
    torch.save({"mapping.mlp.fc.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        import_published(tmp_path, config(tiny_models))
    assert "ran" not in capfd.readouterr().out
