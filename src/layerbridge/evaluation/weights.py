"""Which encoder layers a bridge draws on, by language and on chosen sentences: layer_weights.json.

Shapes: S source tokens, L encoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerbridge.analysis import LanguageWeights, LayerWeights, TokenWeights, read_weights, write_weights
from layerbridge.errors import DataError

if TYPE_CHECKING:
    from layerbridge.config import EvaluationConfig
    from layerbridge.data.example import Split
    from layerbridge.model.bridge import Bridge

MAX_TEXTS = 32
"""Texts of each language that the mean is over, the first ones."""


def measure_weights(
    bridge: Bridge,
    splits: Mapping[str, Split],
    config: EvaluationConfig,
    *,
    run: str,
    seed: int | None,
    task: str,
    sentences: Mapping[str, Sequence[str]],
) -> LayerWeights:
    """Return a bridge's layer weights: means over the tokens of each language, and chosen sentences token by token.

    Args:
        bridge: any fusion; one that takes a single layer has weight one there.
        splits: language code -> rows, as evaluated; the first 32 texts of each are read.
        config: token limit, rows per language.
        run: name of the run.
        seed: of its training.
        task: name of the task.
        sentences: language code -> sentences to show in full, as they are, without the task's prompt.
    """
    languages = {code: _mean(bridge, split, config) for code, split in splits.items()}
    codes = [code for code, texts in sentences.items() for _ in texts]
    wanted = [text for texts in sentences.values() for text in texts]
    shown = []
    if wanted:
        limits = config.model_dump(include={"max_source_tokens", "batch_tokens", "batch_size"})
        for code, found in zip(codes, bridge.layer_weights(wanted, **limits), strict=True):
            rows = tuple(tuple(round(value, 6) for value in row) for row in found.weights.tolist())
            shown.append(TokenWeights(language=code, text=found.text, tokens=found.tokens, weights=rows))
    return LayerWeights(
        run=run,
        fusion=bridge.config.fusion.name,
        seed=seed,
        task=task,
        checkpoint_sha256=bridge.fingerprint(),
        layer_numbers=bridge.encoder.layer_numbers,
        languages=languages,
        sentences=tuple(shown),
    )


def keep_weights(weights: LayerWeights, path: Path) -> None:
    """Write layer_weights.json; languages that an earlier call measured of the same checkpoint stay in it."""
    with suppress(DataError):
        earlier = read_weights(path)
        if earlier.checkpoint_sha256 == weights.checkpoint_sha256 and earlier.task == weights.task:
            shown = [sentence for sentence in earlier.sentences if sentence.language not in weights.languages]
            weights = weights.model_copy(
                update={
                    "languages": dict(sorted((earlier.languages | weights.languages).items())),
                    "sentences": tuple(sorted((*shown, *weights.sentences), key=lambda sentence: sentence.language)),
                }
            )
    write_weights(weights, path)


def _mean(bridge: Bridge, split: Split, config: EvaluationConfig) -> LanguageWeights:
    import torch

    texts = [example.text for example in split.examples[: config.limit][:MAX_TEXTS]]
    inputs = bridge.processor(texts, max_source_tokens=config.max_source_tokens).to(bridge.device)
    bridge.eval()
    with torch.inference_mode():
        weights_BSL = bridge.fuse(inputs).weights_BSL.double()
    num_tokens = int(inputs.source_mask.sum())
    mean_L = weights_BSL.sum(dim=(0, 1)) / num_tokens  # padding has weight zero
    return LanguageWeights(num_tokens=num_tokens, mean=tuple(round(value, 6) for value in mean_L.tolist()))
