"""Every kind of encoder: layers, padding, modes, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from layerbridge.config import EncoderConfig, LLMConfig
from layerbridge.errors import ConfigError, ModelError
from layerbridge.model.bases import load_encoder_base, load_llm_base
from layerbridge.model.encoder import FrozenEncoder, layer_numbers
from tests import tiny

CPU = torch.device("cpu")
ALL = (*tiny.ENCODERS, *tiny.OTHER_ENCODERS)
TEXTS = ["the cat sat on the mat", "one", "ශ්‍රී ලංකාව positive"]


def load(tiny_models, kind, layers="all", **options):
    base = load_encoder_base(EncoderConfig(name=tiny_models[kind], **options), CPU)
    return FrozenEncoder(base.model, layers), base.tokenizer


@pytest.mark.parametrize("kind", ALL)
class TestEveryEncoder:
    def test_padding_never_changes_a_real_tokens_state(self, tiny_models, kind):
        encoder, tokenizer = load(tiny_models, kind)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        states = encoder(batch["input_ids"], batch["attention_mask"])
        assert len(states) == tiny.BLOCKS
        for row, text in enumerate(TEXTS):
            alone = tokenizer([text], return_tensors="pt")
            for together, single in zip(states, encoder(alone["input_ids"], alone["attention_mask"]), strict=True):
                torch.testing.assert_close(together[row, : single.shape[1]], single[0], atol=1e-4, rtol=1e-4)

    def test_same_states_in_and_out_of_training_mode(self, tiny_models, kind):
        encoder, tokenizer = load(tiny_models, kind)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        before = encoder(batch["input_ids"], batch["attention_mask"])
        torch.nn.ModuleList([encoder]).train()
        assert not any(module.training for module in encoder.modules())
        after = encoder(batch["input_ids"], batch["attention_mask"])
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not any(state.requires_grad for state in after)

    def test_layers_are_the_models_own_hidden_states(self, tiny_models, kind):
        encoder, tokenizer = load(tiny_models, kind, layers=(0, 2, -1))
        assert encoder.layer_numbers == (0, 2, tiny.BLOCKS)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = encoder.model(**batch, output_hidden_states=True)
        states = encoder(batch["input_ids"], batch["attention_mask"])
        for state, number in zip(states, (0, 2, tiny.BLOCKS), strict=True):
            assert torch.equal(state, expected.hidden_states[number])
        torch.testing.assert_close(states[-1], expected.last_hidden_state)


def test_last_k_layers():
    assert layer_numbers("last:2", 8) == (7, 8)
    assert layer_numbers("all", 3) == (1, 2, 3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("last:9", "last 9 layers; this encoder has 3"),
        ((1, 7), "layer 7; this encoder has layers 0 .* to 3"),
        ((1, -3), "names a layer twice"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        layer_numbers(layers, 3)


@pytest.mark.parametrize("kind", ["mt5", "umt5"])
def test_float16_with_the_t5_family_is_refused_with_the_reason(tiny_models, kind):
    with pytest.raises(ModelError, match=r"overflow float16 to inf\. Use encoder\.dtype=bfloat16 or float32"):
        load(tiny_models, kind, dtype="float16")


def test_bfloat16_encoder_gives_bfloat16_states(tiny_models):
    encoder, tokenizer = load(tiny_models, "mt5", dtype="bfloat16")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert {s.dtype for s in encoder(batch["input_ids"], batch["attention_mask"])} == {torch.bfloat16}


def test_position_embeddings_set_the_token_limit(tiny_models):
    limits = {kind: load(tiny_models, kind)[0].max_tokens for kind in ("mt5", "bert", "xlmr", "nllb")}
    assert limits == {"mt5": None, "bert": 130, "xlmr": 129, "nllb": None}


def test_a_decoder_is_no_encoder(tiny_models):
    with pytest.raises(ModelError, match="'llama' model, which has no text encoder"):
        load(tiny_models, "llama")


def test_an_encoder_is_no_llm(tiny_models):
    with pytest.raises(ModelError, match="'mt5' model, which has no causal language model"):
        load_llm_base(LLMConfig(name=tiny_models["mt5"]), CPU)


@pytest.mark.parametrize("kind", ["xlmr", "bert"])
def test_a_bidirectional_model_is_no_llm_even_if_transformers_has_a_causal_head_for_it(tiny_models, kind):
    with pytest.raises(ModelError, match="has no causal language model"):
        load_llm_base(LLMConfig(name=tiny_models[kind]), CPU)


def test_recurrent_llms_are_refused_with_the_reason(tmp_path):
    from transformers import MambaConfig

    MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="recurrent layers.*padding would enter their state"):
        load_llm_base(LLMConfig(name=str(tmp_path)), CPU)


def test_damaged_base_weights_are_named(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models["mt5"], tmp_path / "mt5")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:200])
    with pytest.raises(ModelError, match="Cannot load encoder"):
        load_encoder_base(EncoderConfig(name=str(folder)), CPU)


def test_missing_base_weights_are_an_error_and_never_random(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models["mt5"], tmp_path / "mt5")
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "SelfAttention.q" in name)
    save_file({k: v for k, v in weights.items() if k != dropped}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, such as .*SelfAttention\.q.*would be random"):
        load_encoder_base(EncoderConfig(name=str(folder)), CPU)


def test_a_tokenizer_that_tags_languages_is_never_left_to_guess(tiny_models, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "src_lang", "eng_Latn", raising=False)
    with pytest.raises(ConfigError, match=r"would tag all with 'eng_Latn'\. Say which"):
        load(tiny_models, "nllb")
    with pytest.raises(ConfigError, match=r"Unknown encoder\.source_language 'si'"):
        load(tiny_models, "nllb", source_language="si")
    _, tokenizer = load(tiny_models, "nllb", source_language="<s>")
    assert tokenizer.src_lang == "<s>"


def test_a_language_tag_for_a_tokenizer_without_tags_is_refused(tiny_models):
    with pytest.raises(ConfigError, match="tags no languages"):
        load(tiny_models, "mt5", source_language="eng_Latn")


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"Cannot load encoder .*Give a Hugging Face name"):
        load_encoder_base(EncoderConfig(name=str(tmp_path)), CPU)


def test_biases_train_where_there_are_any(tiny_models):
    encoder, tokenizer = load(tiny_models, "xlmr")
    encoder.unfreeze_biases()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert encoder(batch["input_ids"], batch["attention_mask"])[-1].requires_grad
    encoder, _ = load(tiny_models, "mt5")
    with pytest.raises(ConfigError, match="mt5 encoder has no biases"):
        encoder.unfreeze_biases()
