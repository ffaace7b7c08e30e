"""A scaled-down mT5 + Llama pair and real XNLI rows: what the measurements of whole steps and passes run on.

The models are random, saved by `save_pretrained` as a hub would hold them, with the proportions of mT5-large (gated
feed-forward of 2.75 widths, heads of 64) and Llama-3.2-1B (feed-forward of 4 widths, heads of 64, a quarter as many
for keys and values). One tokenizer of 32k pieces serves both.
"""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MT5Config, MT5EncoderModel, PreTrainedTokenizerFast

VOCABULARY = 32_000
LAYERS = 8
PROMPT = "Premise: {premise} Hypothesis: {hypothesis} Label: "
ANSWERS = {"entailment": "Entailment", "neutral": "Neutral", "contradiction": "Contradiction"}


class Row(NamedTuple):
    """One XNLI row as the published set-up reads it."""

    text: str
    answer: str


def xnli_rows(data: Path, language: str = "en", *, seed: int = 0) -> list[Row]:
    """Return XNLI's dev rows in one language, in a random order."""
    with (data / "xnli" / f"dev-{language}.tsv").open(encoding="utf-8") as file:
        rows = [
            Row(PROMPT.format(premise=premise, hypothesis=hypothesis), ANSWERS[label])
            for premise, hypothesis, label in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    random.Random(seed).shuffle(rows)
    return rows


def encoder_config(width: int, layers: int) -> MT5Config:
    """Return the encoder's sizes; `width` is a multiple of 64."""
    return MT5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=64,
        d_ff=width * 11 // 4,
        num_layers=layers,
        num_heads=width // 64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def llm_config(width: int, layers: int) -> LlamaConfig:
    """Return the LLM's sizes; `width` is a multiple of 64."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def build_pair(
    folder: Path, data: Path, *, width: int, layers: int = LAYERS, llm_layers: int | None = None, seed: int = 0
) -> tuple[Path, Path]:
    """Return the folders of encoder and LLM, made on the first call.

    Args:
        folder: where they lie.
        data: folder of the texts that the tokenizer is trained on.
        width: of both, a multiple of 64.
        layers: of both, or
        llm_layers: of the LLM, `layers` then being the encoder's.
        seed: of the weights; the LLM's do not depend on the encoder's size.
    """
    llm_layers = llm_layers or layers
    encoder, llm = folder / f"encoder-{width}-{layers}-{seed}", folder / f"llm-{width}-{llm_layers}-{seed}"
    if (encoder / "config.json").is_file() and (llm / "config.json").is_file():
        return encoder, llm
    tokens = _tokens(folder, data)
    torch.manual_seed(seed)
    MT5EncoderModel(encoder_config(width, layers)).save_pretrained(encoder)
    torch.manual_seed(seed + 1)
    LlamaForCausalLM(llm_config(width, llm_layers)).save_pretrained(llm)
    _tokenizer(tokens, ends_texts=True).save_pretrained(encoder)
    _tokenizer(tokens, ends_texts=False).save_pretrained(llm)
    return encoder, llm


def _tokens(folder: Path, data: Path) -> Path:
    """Return the file of a tokenizer trained on XNLI's dev texts in all its languages."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        core = Tokenizer(models.BPE())
        core.normalizer = normalizers.NFKC()
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "</s>", "<s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(_texts(data), trainer)
        core.save(str(path))
    return path


def _texts(data: Path) -> Iterator[str]:
    for path in sorted((data / "xnli").glob("dev-*.tsv")):
        for row in xnli_rows(data, path.stem.removeprefix("dev-")):
            yield row.text
    for _ in range(100):  # often enough to be made one token each; real tokenizers need one to three for them
        yield from ANSWERS.values()


def _tokenizer(path: Path, *, ends_texts: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer.from_file(str(path))
    if ends_texts:
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
