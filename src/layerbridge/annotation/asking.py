"""The bridge of a process, loaded once, and what it is asked about a window of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerbridge.annotation.plan import Options
from layerbridge.annotation.rows import Outcome, Reject, Row, text_of
from layerbridge.errors import CheckpointError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import checkpoint_fingerprint, load_bridge

DIGITS = 6
"""Significant digits of a probability; more would be noise of float32."""


@dataclass(frozen=True, kw_only=True)
class BridgeSource:
    """Where a process gets its bridge from."""

    run: str
    fingerprint: str
    """Of the bridge that was planned with."""
    device: str | None = None
    encoder: str | None = None
    llm: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a window."""

    outcomes: list[Outcome]
    tokens: int
    """Of the encoder, of texts that were answered."""
    cut: int
    """Texts that were cut."""


_LOADED: dict[BridgeSource, Bridge] = {}
_PROCESS = {"number": 0}


def number_process(number: int) -> None:
    """Say which of a machine's workers this process is: it takes the GPU of that number, counted round."""
    _PROCESS["number"] = number


def bridge_here(source: BridgeSource) -> Bridge:
    """Return this process's bridge, which is loaded the first time.

    Raises:
        CheckpointError: it cannot be loaded, or the run is not any more what was planned with.
        ModelError: a base that cannot be loaded.
    """
    if source not in _LOADED:
        found = checkpoint_fingerprint(source.run)
        if found != source.fingerprint:
            raise CheckpointError(
                f"{source.run} has changed: its bridge is {found[:12]}, and the annotation was begun with "
                f"{source.fingerprint[:12]}. Put the old run back, or annotate into another OUTPUT."
            )
        device = source.device
        if device is None and torch.cuda.is_available():
            device = f"cuda:{_PROCESS['number'] % torch.cuda.device_count()}"
        _LOADED.clear()
        _LOADED[source] = load_bridge(
            source.run,
            device=device,
            encoder=source.encoder,
            llm=source.llm,
            trust_remote_code=source.trust_remote_code,
        )
    return _LOADED[source]


def ask(bridge: Bridge, rows: Sequence[Row], options: Options) -> Found:
    """Return what each row gains, in their order.

    Raises:
        ConfigError: one text alone does not fit the memory.
    """
    outcomes: list[Outcome | None] = [None] * len(rows)
    texts: dict[int, str] = {}
    for index, row in enumerate(rows):
        text = text_of(row, options)
        if isinstance(text, Reject):
            outcomes[index] = text
        else:
            texts[index] = text
    limit = bridge.source_limit(options.max_source_tokens)
    lengths = dict(zip(texts, bridge.count_source_tokens(list(texts.values())) if texts else [], strict=True))
    tokens = cut = 0
    for index, length in lengths.items():
        if not length:
            outcomes[index] = Reject(reason="no_tokens", detail="the encoder's tokenizer makes no token of it")
        elif length > limit and options.too_long == "reject":
            outcomes[index] = Reject(reason="too_long", detail=f"{length} encoder tokens, the limit is {limit}")
        else:
            tokens += min(length, limit)
            cut += length > limit
    wanted = [index for index in texts if outcomes[index] is None]
    for index, answer in zip(wanted, _answers(bridge, [texts[index] for index in wanted], options), strict=True):
        outcomes[index] = answer
    return Found(outcomes=[outcome for outcome in outcomes if outcome is not None], tokens=tokens, cut=cut)


def _answers(bridge: Bridge, texts: list[str], options: Options) -> list[Outcome]:
    """Return the answers to texts. Where the models refuse some, these are found by halving, and the rest goes on."""
    if not texts:
        return []
    try:
        return list(_ask_all(bridge, texts, options))
    except DataError as error:
        if len(texts) == 1:
            return [Reject(reason="refused", detail=str(error))]
    half = len(texts) // 2
    return [*_answers(bridge, texts[:half], options), *_answers(bridge, texts[half:], options)]


def _ask_all(bridge: Bridge, texts: list[str], options: Options) -> list[Mapping[str, Any]]:
    shared: dict[str, Any] = {
        "prompts": None if options.prompt is None else [options.prompt] * len(texts),
        "max_source_tokens": options.max_source_tokens,
        "batch_tokens": options.batch_tokens,
    }
    if options.method == "generate":
        assert options.max_new_tokens is not None
        answers = bridge.generate(texts, max_new_tokens=options.max_new_tokens, stop=options.stop, **shared)
        return [dict(zip(options.added, (answer,), strict=True)) for answer in answers]
    found: list[Mapping[str, Any]] = []
    for one in bridge.classify(texts, options.labels, **shared):
        values: list[Any] = [one.label, _rounded(one.probability)]
        if options.probabilities:
            values.append({label: _rounded(probability) for label, probability in one.probabilities.items()})
        found.append(dict(zip(options.added, values, strict=True)))
    return found


def _rounded(probability: float) -> float:
    return float(f"{probability:.{DIGITS}g}")
