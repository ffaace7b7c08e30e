"""Loading the two frozen base models and their tokenizers, from a hub, a folder, or the package."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)
from transformers.utils import logging

from layerbridge.config import EMBEDDED, EncoderConfig, LLMConfig, LoraConfig, TranslatorConfig
from layerbridge.errors import ConfigError, ModelError, unknown_name
from layerbridge.model.fingerprint import model_fingerprint, tokenizer_fingerprint
from layerbridge.model.llm_files import LLMFiles, files_fingerprint, skeleton

FLOAT16_OVERFLOWS = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Model types whose activations exceed float16's range."""

UNUSED_PARTS = ("pooler.",)
"""Parts of encoders that no hidden state depends on, often absent from their files."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen base model as loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str | None]
    """Name, revision and fingerprints, as a checkpoint keeps them."""


def default_device() -> torch.device:
    """Return this process's GPU if there is one (under torchrun its own, else the first), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def load_encoder_base(config: EncoderConfig, device: torch.device) -> Base:
    """Load the encoder (the encoder half, of a sequence-to-sequence model), frozen.

    Raises:
        ModelError: cannot be loaded, has no text encoder, or float16 with the T5 family.
    """
    path, hub = _locate(config.name, "encoder"), _hub_arguments(config)
    hf_config = _loaded("encoder", config.name, lambda: AutoConfig.from_pretrained(path, **hub))
    kind = hf_config.model_type
    if config.dtype == "float16" and kind in FLOAT16_OVERFLOWS:
        raise ModelError(
            f"Encoder {config.name!r} is of the T5 family ({kind}), whose activations overflow float16 to inf. "
            "Use encoder.dtype=bfloat16 or float32."
        )
    loader = _encoder_loader(kind, hf_config, config.name)
    dtype = getattr(torch, config.dtype)
    model = _pretrained("encoder", config.name, loader, path, {"dtype": dtype, **hub})
    if hf_config.is_encoder_decoder and hasattr(model, "get_encoder") and loader is AutoModel:
        model = model.get_encoder()
    base = _base(model.to(device), path, config, hub, "encoder", model_fingerprint(model))
    _tag_language(base.tokenizer, config)
    return base


def load_llm_base(config: LLMConfig, device: torch.device) -> Base:
    """Load the causal LLM, frozen; quantised if its config says so.

    Raises:
        ModelError: cannot be loaded, is no causal LM, or has no end token.
    """
    path, hub = _locate(config.name, "llm"), _hub_arguments(config)
    hf_config = _loaded("LLM", config.name, lambda: AutoConfig.from_pretrained(path, **hub))
    _check_llm_kind(hf_config, config)
    arguments: dict[str, Any] = {"dtype": getattr(torch, config.dtype), **hub}
    if config.quantization is not None:
        arguments |= {"quantization_config": _quantization(config.quantization), "device_map": {"": device}}
    model = _pretrained("LLM", config.name, AutoModelForCausalLM, path, arguments)
    if config.quantization is None:
        model = model.to(device)
    _drop_generation_defaults(model)
    return _with_end(_base(model, path, config, hub, "LLM", model_fingerprint(model)), config)


def load_llm_embedding(config: LLMConfig, device: torch.device) -> Base:
    """Load of an LLM that runs elsewhere, unmodified, its tokenizer and its input embedding alone.

    The model is of the LLM's own class; its layers have no storage and it refuses to run. The fingerprint is that of
    the whole LLM, or None where its files do not tell it (`layerbridge.model.llm_files.files_fingerprint`).

    Raises:
        ConfigError: adapters or a quantisation, so that the LLM elsewhere would be another than the bridge's.
        ModelError: cannot be loaded, is no causal LM, or has no end token.
    """
    _check_unmodified(config)
    path, hub = _locate(config.name, "llm"), _hub_arguments(config)
    hf_config = _loaded("LLM", config.name, lambda: AutoConfig.from_pretrained(path, **hub))
    _check_llm_kind(hf_config, config)
    dtype = getattr(torch, config.dtype)
    files = _loaded("LLM", config.name, lambda: LLMFiles(path, hub))
    model = _loaded("LLM", config.name, lambda: skeleton(hf_config, path, hub, files, dtype))
    fingerprint = files_fingerprint(model, files, dtype)
    model.get_input_embeddings().to(device)
    _drop_generation_defaults(model)
    return _with_end(_base(model, path, config, hub, "LLM", fingerprint), config)


def load_translator_base(config: TranslatorConfig, device: torch.device) -> Base:
    """Load a sequence-to-sequence translation model, frozen.

    Raises:
        ModelError: cannot be loaded, or is no sequence-to-sequence model.
    """
    hub = _hub_arguments(config)
    arguments = {"dtype": getattr(torch, config.dtype), **hub}
    model = _pretrained("translator", config.name, AutoModelForSeq2SeqLM, config.name, arguments)
    return _base(model.to(device), config.name, config, hub, "translator", model_fingerprint(model))


def add_lora(model: nn.Module, config: LoraConfig, base_name: str) -> None:
    """Put trainable low-rank adapters into a frozen model, in place."""
    try:
        import peft
    except ImportError:
        raise ConfigError("LoRA needs the peft package: pip install 'layerbridge[lora]'.") from None
    targets = config.target_modules
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        peft.inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be put into {base_name!r}: {error}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # in bfloat16 most updates would round to nothing
            parameter.data = parameter.data.float()


def _with_end(base: Base, config: LLMConfig) -> Base:
    if base.tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of LLM {config.name!r} has no end token, so answers could never end. "
            "Set eos_token in its tokenizer_config.json."
        )
    return base


def _check_unmodified(config: LLMConfig) -> None:
    """Refuse what an unmodified LLM elsewhere is not."""
    if config.lora is not None:
        raise ConfigError(
            "This bridge was trained with adapters inside the LLM (llm.lora), which an unmodified LLM elsewhere lacks. "
            "Run the LLM in this process, or train without llm.lora."
        )
    if config.quantization is not None:
        raise ConfigError(
            f"This bridge was trained on an LLM that is quantised when loaded ({dict(config.quantization)}), and "
            "the LLM elsewhere cannot be known to be quantised alike. Run it in this process, or train without "
            "llm.quantization."
        )


def _base(
    model: Any,
    path: str,
    config: EncoderConfig | LLMConfig | TranslatorConfig,
    hub: dict[str, Any],
    role: str,
    fingerprint: str | None,
) -> Base:
    model.requires_grad_(False)
    model.eval()
    tokenizer = _loaded(f"tokenizer of {role}", config.name, lambda: AutoTokenizer.from_pretrained(path, **hub))
    if tokenizer.vocab_size > model.get_input_embeddings().num_embeddings:  # added tokens may go unused, as Gemma 3's
        raise ModelError(
            f"The tokenizer of {role} {config.name!r} has {tokenizer.vocab_size} tokens and its model only "
            f"{model.get_input_embeddings().num_embeddings} embeddings; they do not belong together."
        )
    return Base(
        model=model,
        tokenizer=tokenizer,
        identity={
            "name": config.name,
            "revision": config.revision or getattr(model.config, "_commit_hash", None),
            "model_type": model.config.model_type,
            "fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        },
    )


def _tag_language(tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> None:
    """Set the language tag of a tokenizer that has one, and refuse to guess it."""
    default = getattr(tokenizer, "src_lang", None)
    if default is None and config.source_language is None:
        return
    if default is None:
        raise ConfigError(
            f"encoder.source_language is {config.source_language!r}, and the tokenizer of {config.name!r} tags no "
            "languages. Drop it."
        )
    if config.source_language is None:
        raise ConfigError(
            f"The tokenizer of encoder {config.name!r} tags every text with a language and would tag all with "
            f"{default!r}. Say which tag to use with encoder.source_language."
        )
    if config.source_language not in tokenizer.get_vocab():
        known = [token for token in tokenizer.all_special_tokens if len(token) > 5 and "_" in token]
        raise ConfigError(unknown_name("encoder.source_language", config.source_language, known))
    tokenizer.src_lang = config.source_language


def _check_llm_kind(hf_config: Any, config: LLMConfig) -> None:
    kind = hf_config.model_type
    bidirectional = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(hf_config, "is_decoder", False)
    if (kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.trust_remote_code) or bidirectional:
        raise ModelError(
            f"LLM {config.name!r} is a {kind!r} model, which has no causal language model in transformers. "
            "Wanted a decoder such as Llama, Qwen, Gemma, SmolLM or GPT-2."
        )
    kinds = set(getattr(hf_config.get_text_config(), "layer_types", None) or ())
    recurrent = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if recurrent or any(word in kind for word in ("mamba", "rwkv", "recurrent")):
        raise ModelError(
            f"LLM {config.name!r} ({kind}) has recurrent layers{f' ({recurrent[0]})' if recurrent else ''}: padding "
            "would enter their state, and batches would differ from single texts. Wanted an attention-only decoder."
        )


def _drop_generation_defaults(model: Any) -> None:
    """Keep the end tokens of a model's generation defaults; its sampling and penalties would leak into greedy."""
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id if own is not None else None)


def _encoder_loader(kind: str, hf_config: Any, name: str) -> Any:
    if kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return AutoModelForTextEncoding
    if hf_config.is_encoder_decoder or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModel
    raise ModelError(
        f"Encoder {name!r} is a {kind!r} model, which has no text encoder. "
        "Wanted an encoder such as mT5, umT5, XLM-R, BERT or NLLB; a decoder belongs under `llm`."
    )


def _locate(name: str, role: str) -> str:
    if name == EMBEDDED:
        return str(resources.files("layerbridge").joinpath("embedded", role))
    return name


def _hub_arguments(config: EncoderConfig | LLMConfig | TranslatorConfig) -> dict[str, Any]:
    local = config.name == EMBEDDED or Path(config.name).is_dir()
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None and not local:
        arguments["revision"] = config.revision
    return arguments


def _quantization(options: dict[str, Any]) -> Any:
    from transformers.quantizers import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(dict(options))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"llm.quantization is not one that transformers knows: {error}") from None


def _pretrained(role: str, name: str, loader: Any, path: str, arguments: dict[str, Any]) -> Any:
    """Load weights; unused ones (a decoder, a head) are ignored, missing ones are an error and never random."""
    with _quiet():  # the list of unused weights is long and says nothing
        model, info = _loaded(role, name, lambda: loader.from_pretrained(path, output_loading_info=True, **arguments))
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED_PARTS))
    if missing:
        raise ModelError(
            f"The weights of {role} {name!r} lack {len(missing)} tensors, such as {', '.join(missing[:3])}; they would "
            "be random. The files are incomplete or of another architecture than their config.json says."
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _loaded(role: str, name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"Cannot load {role} {name!r}: {message} "
            "Give a Hugging Face name, a folder made by save_pretrained, or 'embedded'."
        ) from error
