"""What vLLM is asked: bodies of its requests, with its own names of fields.

Shapes: T LLM positions, D LLM width.

Every sampling parameter is said, also where it changes nothing: vLLM takes what is left out from the generation_config
of the LLM's files.
"""

import base64
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerbridge.model.processor import TEMPLATE_DATE
from layerbridge.serving.engine import Writing
from layerbridge.serving.errors import ApiError
from layerbridge.serving.upstream import broken

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

MAX_LOGPROB_TOKEN_IDS = 128
"""Tokens of one request whose log-probabilities vLLM returns at most."""

NO_LOG_PROBABILITIES = (
    "classify is not supported by this LLM's server: it does not return the log-probabilities of given tokens "
    "(logprob_token_ids). Use a newer vLLM, or run the LLM in this process."
)

_NOTHING = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Parameters with the values that change nothing."""


def payload(embeds_TD: Tensor) -> str:
    """Return embeddings as vLLM reads them: base64 of what `torch.save` writes. We write it and never read it."""
    buffer = io.BytesIO()
    torch.save(embeds_TD.detach().cpu().contiguous(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def completion_body(model: str, embeds_TD: Tensor, how: Writing, ends: Collection[int]) -> dict[str, Any]:
    """Return the request that writes on from embeddings, which hold the whole prompt, template and bos included."""
    return {"model": model, "prompt_embeds": payload(embeds_TD), **_writing(how, ends)}


def chat_body(model: str, embeds_TD: Tensor, prompt: str, how: Writing, ends: Collection[int]) -> dict[str, Any]:
    """Return the request with embeddings inside a user's turn, a text after them; vLLM writes the template around."""
    content: list[dict[str, str]] = [{"type": "prompt_embeds", "data": payload(embeds_TD)}]
    if prompt:
        content.append({"type": "text", "text": prompt})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "chat_template_kwargs": {"date_string": TEMPLATE_DATE},
        **_writing(how, ends),
    }


def next_token(
    model: str, prompt: Mapping[str, Any], *, tokens: Sequence[int] = (), most_probable: int = 0
) -> dict[str, Any]:
    """Return the request for the log-probabilities of tokens after a prompt.

    Args:
        model: its name at vLLM.
        prompt: `prompt` with token ids, or `prompt_embeds`.
        tokens: exactly these are asked for, at most `MAX_LOGPROB_TOKEN_IDS`; or
        most_probable: so many.
    """
    return {
        "model": model,
        **prompt,
        "max_tokens": 1,
        "temperature": 0.0,
        **_NOTHING,
        "logprobs": len(tokens) or most_probable,
        "return_tokens_as_token_ids": True,
        **({"logprob_token_ids": list(tokens)} if tokens else {}),
    }


def read_log_probabilities(answer: Mapping[str, Any]) -> dict[int, float]:
    """Return the log-probabilities by token of the answer to `next_token`.

    Raises:
        ApiError: an answer of another form, or values that are no log-probabilities.
    """
    try:
        found = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        values = {int(name.removeprefix("token_id:")): float(value) for name, value in found.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise broken("its log-probabilities have another form than wanted") from None
    if any(math.isnan(value) or value > 1e-3 for value in values.values()):
        raise ApiError(
            502,
            "The LLM's server returned values that are no log-probabilities. Start vLLM with --logprobs-mode "
            "raw_logprobs.",
            code="engine_broken",
        )
    return values


def written_tokens(choice: Mapping[str, Any]) -> list[int]:
    """Return the tokens of one choice of a stream; none where it holds no text.

    Raises:
        ApiError: text without its tokens, as older servers send it.
    """
    ids = choice.get("token_ids")
    if ids is None:
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            raise broken("it sends no token_ids; wanted a vLLM that knows return_token_ids (0.10.2 or later)")
        return []
    if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
        raise broken("its token_ids are no list of numbers")
    return ids


def _writing(how: Writing, ends: Collection[int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "max_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k or 0,
        **_NOTHING,
        "stop": list(how.stop),
        "stop_token_ids": sorted(ends),
        "stream": True,
        "return_token_ids": True,
    }
    return fields if how.seed is None else fields | {"seed": how.seed}


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a request's body as bytes."""
    return json.dumps(body, ensure_ascii=False).encode()
