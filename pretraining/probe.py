"""The yardstick: linear probes and retrieval on frozen, mean-pooled states.

SIB-200 train (English) fits the probe, SIB-200 dev of 27 languages measures it. Nothing is
trained on it besides the probe, and the test split is never opened.
Shapes: L hidden states, N sentences, E encoder width.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from layerbridge.atomic import replace_text
from pretraining.languages import LANGUAGES, NON_ENGLISH


def read_sib200(data: Path, lang: str, split: str) -> tuple[list[str], list[str], list[str]]:
    """Sentence ids, labels and texts of one language."""
    path = data / "sib200" / LANGUAGES[lang].sib200 / f"{split}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [r["index_id"] for r in rows], [r["category"] for r in rows], [r["text"] for r in rows]


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    """Padded ids and mask of some sentences."""
    return tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")


@torch.inference_mode()
def pooled_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, batch: int = 64
) -> np.ndarray:
    """[L, N, E] means over a sentence's tokens of each hidden state, as the encoder puts them out."""
    pooled = []
    for begin in range(0, len(texts), batch):
        inputs = tokenise(tokenizer, texts[begin : begin + batch])
        mask_BS1 = inputs.attention_mask[..., None].float()
        states = model(**inputs, output_hidden_states=True).hidden_states
        pooled.append(torch.stack([(s.float() * mask_BS1).sum(1) / mask_BS1.sum(1) for s in states]))
    return torch.cat(pooled, dim=1).numpy()


def probe_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Path, report: Path | None = None
) -> dict:
    """Accuracy of every layer and of their mean in 27 languages, and retrieval of English.

    Retrieval: the English original among the dev sentences by cosine, each language centred.
    """
    _, train_labels, train_texts = read_sib200(data, "en", "train")
    train_LNE = pooled_states(model, tokenizer, train_texts)
    dev = {lang: read_sib200(data, lang, "dev") for lang in LANGUAGES}
    order = dev["en"][0]
    dev_LNE = {lang: pooled_states(model, tokenizer, texts) for lang, (_, _, texts) in dev.items()}
    views = {f"layer {i}": i for i in range(len(train_LNE))} | {"mean of layers": None}
    result: dict = {"task": "SIB-200 dev", "n": len(order), "accuracy": {}, "retrieval": {}}
    for name, layer in views.items():
        train_NE = _view(train_LNE, layer)
        centre, scale = train_NE.mean(0), train_NE.std(0) + 1e-6
        probe = LogisticRegression(C=0.02, max_iter=300).fit((train_NE - centre) / scale, train_labels)
        scores = {
            lang: float(probe.score((_view(dev_LNE[lang], layer) - centre) / scale, dev[lang][1])) for lang in LANGUAGES
        }
        result["accuracy"][name] = {"mean of 26": float(np.mean([scores[x] for x in NON_ENGLISH])), **scores}
        found = {
            lang: _retrieval(_view(dev_LNE[lang], layer), dev[lang][0], _view(dev_LNE["en"], layer), order)
            for lang in NON_ENGLISH
        }
        result["retrieval"][name] = {"mean of 26": float(np.mean(list(found.values()))), **found}
    if report is not None:
        replace_text(report, json.dumps(result, indent=1))
    return result


def summary(result: dict) -> str:
    """One line a layer: English, mean of 26, retrieval."""
    return "\n".join(
        f"{name:15s} en {scores['en']:.3f}  26 {scores['mean of 26']:.3f}  "
        f"retrieval {result['retrieval'][name]['mean of 26']:.3f}"
        for name, scores in result["accuracy"].items()
    )


def _view(states_LNE: np.ndarray, layer: int | None) -> np.ndarray:
    return states_LNE[1:].mean(0) if layer is None else states_LNE[layer]


def _retrieval(here_NE: np.ndarray, ids: list[str], english_NE: np.ndarray, order: list[str]) -> float:
    here_NE, english_NE = here_NE - here_NE.mean(0), english_NE - english_NE.mean(0)
    here_NE /= np.linalg.norm(here_NE, axis=1, keepdims=True)
    english_NE /= np.linalg.norm(english_NE, axis=1, keepdims=True)
    best = (here_NE @ english_NE.T).argmax(1)
    return float(np.mean([order[b] == own for b, own in zip(best, ids, strict=True)]))
