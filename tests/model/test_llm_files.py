"""An LLM that runs elsewhere: its embedding is the whole LLM's, its identity is checked, and it does not run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from layerbridge.config import LLMConfig
from layerbridge.errors import CheckpointError, ConfigError, ModelError
from layerbridge.model.bases import load_llm_base, load_llm_embedding
from layerbridge.model.checkpoint import load_bridge
from tests import tiny
from tests.model.test_bridge import TEXTS, make

CPU = torch.device("cpu")


def stored(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.device.type != "meta")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("llm", tiny.LLMS)
def test_the_embedding_is_the_whole_llms_and_nothing_else_has_storage(tiny_models, llm, dtype):
    config = LLMConfig(name=tiny_models[llm], dtype=dtype)
    whole, part = load_llm_base(config, CPU), load_llm_embedding(config, CPU)
    ids = torch.arange(tiny.VOCABULARY)
    wanted, found = (base.model.get_input_embeddings()(ids) for base in (whole, part))
    assert torch.equal(found, wanted)
    assert found.dtype == wanted.dtype
    assert part.identity == whole.identity, "the fingerprint is that of all weights"
    assert part.model.generation_config.eos_token_id == whole.model.generation_config.eos_token_id
    assert stored(part.model) == tiny.VOCABULARY * tiny.WIDTH
    with pytest.raises(ModelError, match="runs elsewhere"):
        part.model(input_ids=ids[None])


def test_sharded_files_are_read_by_their_index(tiny_models, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).save_pretrained(tmp_path, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_models["llama"]) / name, tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    part = load_llm_embedding(LLMConfig(name=str(tmp_path)), CPU)
    assert (
        part.identity["fingerprint"] == load_llm_base(LLMConfig(name=tiny_models["llama"]), CPU).identity["fingerprint"]
    )


def altered(tiny_models, tmp_path, llm, change):
    folder = tmp_path / "llm"
    shutil.copytree(tiny_models[llm], folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_head_that_is_saved_beside_its_tied_embedding_counts_once(tiny_models, tmp_path):
    def untie(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    folder = altered(tiny_models, tmp_path, "gemma2", untie)
    found = load_llm_embedding(LLMConfig(name=folder), CPU).identity["fingerprint"]
    assert found == load_llm_base(LLMConfig(name=tiny_models["gemma2"]), CPU).identity["fingerprint"]


def test_other_weights_are_found_out_though_no_layer_is_loaded(tiny_models, tmp_path):
    run = make(tiny_models).save_pretrained(tmp_path / "run")

    def change(tensors):
        return tensors | {"model.layers.1.mlp.up_proj.weight": tensors["model.layers.1.mlp.up_proj.weight"] + 1}

    folder = altered(tiny_models, tmp_path, "llama", change)
    with pytest.raises(CheckpointError, match="was trained on another llm: its weights"):
        load_bridge(run, llm=folder, device="cpu", llm_elsewhere=True)


def test_weights_in_another_form_are_said_not_to_be_checked(tiny_models, tmp_path):
    run = make(tiny_models).save_pretrained(tmp_path / "run")

    def fuse(tensors):
        fused = {name: one for name, one in tensors.items() if "layers.1.mlp.up" not in name}
        return fused | {"fused": torch.zeros(3, 5)}

    folder = altered(tiny_models, tmp_path, "llama", fuse)
    with pytest.warns(UserWarning, match="was not checked"):
        load_bridge(run, llm=folder, device="cpu", llm_elsewhere=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {n: x for n, x in t.items() if "embed_tokens" not in n}, "hold 0 tensors that could be"),
        (lambda t: t | {"model.embed_tokens.weight": torch.zeros(9, 4)}, r"shape \(9, 4\).*wants \(320, 32\)"),
    ],
)
def test_files_without_the_embedding_are_refused(tiny_models, tmp_path, change, words):
    with pytest.raises(ModelError, match=words):
        load_llm_embedding(LLMConfig(name=altered(tiny_models, tmp_path, "llama", change)), CPU)


def test_files_of_another_kind_are_refused(tiny_models, tmp_path):
    folder = Path(altered(tiny_models, tmp_path, "llama", dict))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors files"):
        load_llm_embedding(LLMConfig(name=str(folder)), CPU)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed_tokens.weight": "gone"}}))
    with pytest.raises(ModelError, match="lacks the file gone"):
        load_llm_embedding(LLMConfig(name=str(folder)), CPU)


def test_a_quantised_llm_is_refused(tiny_models):
    with pytest.raises(ConfigError, match="quantised when loaded.*Run it in this process"):
        load_llm_embedding(LLMConfig(name=tiny_models["llama"], quantization={"quant_method": "x"}), CPU)


def test_what_the_llm_reads_is_what_the_whole_bridge_makes(tiny_models, tmp_path):
    from layerbridge.model.splice import splice

    for projector in ({"match_rms": True}, {}):
        whole = make(tiny_models, llm="gemma3", projector=projector)
        part = load_bridge(whole.save_pretrained(tmp_path / "run"), device="cpu", llm_elsewhere=True)
        inputs = whole.processor(TEXTS, prompts=["one"] * len(TEXTS))
        with torch.no_grad():
            wanted, found = (splice(one.prefix_pieces(inputs)).embeds_BTD for one in (whole, part))
        assert torch.equal(found, wanted)
        assert part.fingerprint() == whole.fingerprint()
