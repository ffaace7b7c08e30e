"""What is found out of vLLM before anything is served: that it is there, which model it has, and that it reads
embeddings as the LLM of the bridge does.

The last is tried: the same tokens are read once as ids and once as the embeddings that our copy of the LLM's embedding
module puts out. Another LLM, another width, `--enable-prompt-embeds` left out, and a vLLM that scales embeddings once
more (Gemma 1 and 2, until spring 2026) all show there.
"""

from collections.abc import Mapping
from itertools import count, islice
from typing import Any, NamedTuple

import torch

from layerbridge.errors import ConfigError, unknown_name
from layerbridge.model.bridge import Bridge
from layerbridge.serving.engine import Writing
from layerbridge.serving.errors import ApiError
from layerbridge.serving.upstream import Upstream
from layerbridge.serving.vllm_requests import (
    CHAT,
    COMPLETIONS,
    chat_body,
    next_token,
    payload,
    read_log_probabilities,
)

PROBE = "The quick brown fox jumps over the lazy dog."
PROBED_TOKENS = 5
"""Most probable next tokens that are compared."""
OTHER_TOKENS = 3
"""Tokens that are asked for besides, which only a vLLM that knows `logprob_token_ids` returns."""
TOLERANCE = 0.25
"""Nats between the log-probabilities of both ways; other kernels may read ids and embeddings."""


class UpstreamModel(NamedTuple):
    """A model at vLLM."""

    name: str
    max_tokens: int | None
    """Positions that it takes; None: it does not say."""
    scores: bool
    """Whether log-probabilities of given tokens can be had, as classifying needs."""


def check_upstream(upstream: Upstream, bridges: Mapping[str, Bridge]) -> UpstreamModel:
    """Return the model that answers; called once, before requests are taken.

    Raises:
        ConfigError: vLLM is not there, lacks the model, or reads embeddings otherwise than these bridges' LLM.
    """
    url = upstream.config.url
    if not upstream.is_well():
        raise ConfigError(
            f"No vLLM that is well at {url}: GET {url}/health gave no 200. Start `vllm serve` with "
            "--enable-prompt-embeds first, and wait until it listens."
        )
    name, stated = _find_model(upstream)
    own = [_own_limit(bridge) for bridge in bridges.values()]
    limits = [limit for limit in (stated, *own) if limit is not None]
    scores, seen = True, set[int]()
    for run, bridge in bridges.items():
        if id(bridge.llm) not in seen:  # runs that share an LLM share the object
            seen.add(id(bridge.llm))
            scores = _probe(upstream, name, run, bridge) and scores
    if upstream.config.route == "chat":
        _probe_chat(upstream, name, next(iter(bridges.values())))
    return UpstreamModel(name, min(limits, default=None), scores)


def _find_model(upstream: Upstream) -> tuple[str, int | None]:
    cards = _ask(upstream, "GET", "/v1/models").get("data") or []
    bases = {str(card["id"]): card for card in cards if not card.get("parent")}  # adapters have one
    wanted = upstream.config.model
    if wanted is None and len(bases) != 1:
        raise ConfigError(
            f"vLLM at {upstream.config.url} serves {len(bases)} models ({', '.join(bases) or 'none'}); say which with "
            "--engine-model."
        )
    if wanted is not None and wanted not in bases:
        raise ConfigError(unknown_name("model of --engine-model", wanted, sorted(bases)))
    name = wanted if wanted is not None else next(iter(bases))
    limit = bases[name].get("max_model_len")
    return name, limit if isinstance(limit, int) else None


def _own_limit(bridge: Bridge) -> int | None:
    limit: int | None = getattr(bridge.llm.config.get_text_config(), "max_position_embeddings", None)
    return limit


@torch.no_grad()
def _probe(upstream: Upstream, name: str, run: str, bridge: Bridge) -> bool:
    """Compare both ways of reading the same tokens; return whether given tokens' log-probabilities can be had."""
    tokenizer = bridge.processor.llm_tokenizer
    ids = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if tokenizer.bos_token_id is not None:
        ids.insert(0, tokenizer.bos_token_id)
    embeds_TD = bridge.embed(torch.tensor(ids, device=bridge.device))
    by_ids = _log_probabilities(upstream, next_token(name, {"prompt": ids}, most_probable=PROBED_TOKENS))
    tokens = [*by_ids, *islice((token for token in count() if token not in by_ids), OTHER_TOKENS)]
    by_embeds = _log_probabilities(upstream, next_token(name, {"prompt_embeds": payload(embeds_TD)}, tokens=tokens))
    common = by_ids.keys() & by_embeds.keys()
    apart = max((abs(by_ids[token] - by_embeds[token]) for token in common), default=float("inf"))
    if apart > TOLERANCE:
        raise ConfigError(
            f"vLLM's {name!r} reads the embeddings of run {run!r}'s LLM ({bridge.bases['llm']['name']}) otherwise than "
            f"the tokens that they stand for: log-probabilities of the next token are {apart:.2f} apart, wanted at "
            f"most {TOLERANCE}. It is another LLM, or a vLLM that scales given embeddings once more. Serve that LLM, "
            "with a newer vLLM."
        )
    return set(tokens) <= by_embeds.keys()


@torch.no_grad()
def _probe_chat(upstream: Upstream, name: str, bridge: Bridge) -> None:
    ids = bridge.processor.llm_tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    embeds_TD = bridge.embed(torch.tensor(ids, device=bridge.device))
    body = chat_body(name, embeds_TD, "", Writing(max_new_tokens=1), ()) | {"stream": False}
    _ask(upstream, "POST", CHAT, body)


def _log_probabilities(upstream: Upstream, body: dict[str, Any]) -> dict[int, float]:
    try:
        return read_log_probabilities(_ask(upstream, "POST", COMPLETIONS, body))
    except ApiError as error:
        raise ConfigError(f"vLLM at {upstream.config.url} cannot be used. {error.message}") from None


def _ask(upstream: Upstream, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return upstream.ask_now(method, path, body)
    except ApiError as error:
        raise ConfigError(
            f"vLLM at {upstream.config.url} did not answer {method} {path} as wanted. {error.message} Its log may say "
            "more; `vllm serve` has to be started with --enable-prompt-embeds."
        ) from None
