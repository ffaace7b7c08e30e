"""Tiny random models of real architectures, saved by `save_pretrained` as a hub would hold them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100Model,
    MT5Config,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

VOCABULARY = 320
WIDTH = 32
BLOCKS = 3
CORPUS = ["the cat sat on the mat", "Habari ya asubuhi", "ශ්‍රී ලංකාව", "positive negative neutral", "one two three"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(*, ends_texts: bool, bos: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `ends_texts` it closes every text with `</s>`, as encoders' do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if ends_texts:
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        padding_side="right",
    )
    if chat:
        made.chat_template = CHAT
    return made


def _encoder(kind: str):
    shared = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1}
    t5 = shared | {
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": BLOCKS,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    bert = shared | {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 130,
    }
    match kind:
        case "mt5":
            return MT5EncoderModel(MT5Config(**t5, feed_forward_proj="gated-gelu"))
        case "mt5-whole":
            return MT5ForConditionalGeneration(MT5Config(**t5, num_decoder_layers=2))
        case "umt5":
            return UMT5EncoderModel(UMT5Config(**t5))
        case "xlmr":
            return XLMRobertaModel(XLMRobertaConfig(**bert))
        case "bert":
            return BertModel(BertConfig(**bert))
        case "nllb":
            return M2M100Model(
                M2M100Config(
                    **shared,
                    d_model=WIDTH,
                    encoder_layers=BLOCKS,
                    decoder_layers=2,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=48,
                    decoder_ffn_dim=48,
                    max_position_embeddings=128,
                    bos_token_id=2,
                    decoder_start_token_id=1,
                )
            )
    raise AssertionError(kind)


def _llm(kind: str):
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    window = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**shared))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**shared))
        case "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(**shared, **window))
        case "gemma3":
            return Gemma3ForCausalLM(Gemma3TextConfig(**shared, **window))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=WIDTH,
                    n_layer=2,
                    n_head=4,
                    n_positions=128,
                    bos_token_id=2,
                    eos_token_id=1,
                )
            )
    raise AssertionError(kind)


ENCODERS = ("mt5", "xlmr", "nllb")
OTHER_ENCODERS = ("umt5", "bert", "mt5-whole")
LLMS = ("llama", "qwen3", "gemma2", "gemma3", "gpt2")


def save_encoder(kind: str, folder: Path, seed: int = 0) -> str:
    """Save a tiny encoder with its tokenizer; returns the folder's name."""
    torch.manual_seed(seed)
    model = _encoder(kind)
    if "t5" in kind:
        _spread(model)
    model.save_pretrained(folder)
    tokenizer(ends_texts=True).save_pretrained(folder)
    return str(folder)


def save_llm(kind: str, folder: Path, *, seed: int = 1, chat: bool = False) -> str:
    """Save a tiny causal LM with its tokenizer (Qwen's has no bos); returns the folder's name."""
    torch.manual_seed(seed)
    model = _llm(kind)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer(ends_texts=False, bos=kind != "qwen3", chat=chat).save_pretrained(folder)
    return str(folder)


def _spread(model: torch.nn.Module) -> None:
    """Widen the tiny initial weights, so that answers differ clearly between inputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
