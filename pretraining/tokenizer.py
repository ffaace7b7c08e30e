"""Trains the two tokenizers: sentencepiece unigram (27 languages) and byte-level BPE (English)."""

from __future__ import annotations

import io
import json
import logging
import random
from collections import defaultdict
from pathlib import Path

import sentencepiece
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from layerbridge.atomic import replace_text
from pretraining.corpus import read_json_lines
from pretraining.made import is_made, of_files, of_tokenizer, save_folder

SPECIAL = PAD, EOS, UNK, MASK = "<pad>", "</s>", "<unk>", "<extra_id_0>"
"""The encoder's special pieces, ids 0 to 3: mT5's order, then the mask of the training."""

log = logging.getLogger(__name__)


def build_encoder_tokenizer(
    corpus: tuple[Path, Path],
    out: Path,
    *,
    vocabulary: int,
    sentences: int,
    max_length: int,
    seed: int,
    balance: float = 0.3,
) -> PreTrainedTokenizerFast:
    """Trains the unigram tokenizer once into `out` and loads it.

    Args:
        corpus: paths of rows and documents.
        out: folder of the finished tokenizer.
        vocabulary: pieces, the four special ones included.
        sentences: lines to train on, over all languages.
        max_length: the tokenizer's `model_max_length` in tokens.
        seed: of the sample.
        balance: a language's share is proportional to (its characters) ** balance.
    """
    plan = {
        "vocabulary": vocabulary, "sentences": sentences, "max_length": max_length, "seed": seed, "balance": balance
    }  # fmt: skip
    made = {"plan": plan, "inputs": {"corpus": of_files(*corpus)}}
    if not is_made("encoder's tokenizer", out, made):
        lines = _balanced_sample(corpus, sentences=sentences, balance=balance, seed=seed)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary,
            character_coverage=0.9997,
            normalization_rule_name="identity",  # the lines are normalised already
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=[MASK],
            num_threads=2,
            max_sentence_length=8000,
            minloglevel=1,
        )
        save_folder(out, lambda folder: _save_unigram(model.getvalue(), folder, max_length=max_length))
    return PreTrainedTokenizerFast.from_pretrained(out)


def _balanced_sample(corpus: tuple[Path, Path], *, sentences: int, balance: float, seed: int) -> list[str]:
    """Lines of every language; scarce ones are repeated up to their share."""
    by_lang: dict[str, list[str]] = defaultdict(list)
    rows, documents = corpus
    for record in read_json_lines(rows):
        for lang, line in record["text"].items():
            by_lang[lang].append(line[:400])
    for record in read_json_lines(documents):
        if record["source"] != "books" and len(by_lang[record["lang"]]) < 200_000:
            by_lang[record["lang"]].append(record["text"].split("\n")[0][:400])
    weight = {lang: sum(map(len, lines)) ** balance for lang, lines in by_lang.items()}
    total_characters = sentences * 60
    rng = random.Random(seed)
    sample: list[str] = []
    for lang, lines in sorted(by_lang.items()):
        wanted = total_characters * weight[lang] / sum(weight.values())
        rng.shuffle(lines)
        taken = 0
        while taken < wanted:
            for line in lines:
                sample.append(line)
                taken += len(line)
                if taken >= wanted:
                    break
    rng.shuffle(sample)
    return sample


def _save_unigram(model: bytes, out: Path, *, max_length: int) -> None:
    """Writes the sentencepiece model as a fast tokenizer that appends `</s>`."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = [(pieces.id_to_piece(i), round(pieces.get_score(i), 4)) for i in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id(), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, pieces.eos_id())]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[MASK],
        padding_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(out)


def build_llm_tokenizer(
    documents: Path, out: Path, *, vocabulary: int, max_length: int, sentences: int = 150_000
) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE of the English LM once into `out` and loads it."""
    plan = {"vocabulary": vocabulary, "max_length": max_length, "sentences": sentences}
    made = {"plan": plan, "inputs": {"documents": of_files(documents)}}
    if not is_made("LM's tokenizer", out, made):
        english = (r for r in read_json_lines(documents) if r["lang"] == "en")
        texts = [r["text"] for r in english if not (r["source"] == "books" and len(r["text"]) % 4)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<pad>", "<s>", "</s>"]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts[:sentences], trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            padding_side="left",
            model_max_length=max_length,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )
        save_folder(out, fast.save_pretrained)
    return PreTrainedTokenizerFast.from_pretrained(out)


def measure_tokenizer(tokenizer: PreTrainedTokenizerFast, rows: Path, report: Path) -> None:
    """Writes characters a token and the share of unknown tokens, by language, on ntrex, once into `report`."""
    inputs = {"tokenizer": of_tokenizer(tokenizer), "rows": of_files(rows)}
    if is_made("encoder tokenizer's figures", report, {"plan": {}, "inputs": inputs}):
        return
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in read_json_lines(rows):
        if record["source"] != "ntrex":
            continue
        for lang, line in record["text"].items():
            ids = tokenizer(line, add_special_tokens=False).input_ids
            whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False) == line
            sums = (len(line), len(ids), ids.count(tokenizer.unk_token_id), not whole)
            counts[lang] = [a + b for a, b in zip(counts[lang], sums, strict=True)]
    figures = {
        lang: {"characters_a_token": round(c / t, 2), "unknown_share": round(u / t, 5), "changed_lines": n}
        for lang, (c, t, u, n) in sorted(counts.items())
    }
    replace_text(report, json.dumps(figures, indent=1))
