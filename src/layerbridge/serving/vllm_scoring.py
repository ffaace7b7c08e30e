"""Labels' probabilities from an LLM in vLLM: exact, by a request for each beginning of a label.

Shapes: T LLM positions, D LLM width, M nodes of the labels' tree.

vLLM returns the log-probabilities of given tokens after a prompt (`logprob_token_ids`), and of no token inside a prompt
of embeddings. So each node of the labels' tree is a prompt of its own, the text and the label's beginning, of which the
next token's log-probabilities are asked for; what they add up to is what scoring in this process computes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerbridge.model.bridge import Bridge
from layerbridge.model.trie import Trie, build_trie
from layerbridge.serving.errors import bad_request
from layerbridge.serving.upstream import Upstream
from layerbridge.serving.vllm_requests import (
    COMPLETIONS,
    MAX_LOGPROB_TOKEN_IDS,
    NO_LOG_PROBABILITIES,
    encode,
    next_token,
    payload,
    read_log_probabilities,
)

MAX_ASKED_AT_ONCE = 16
"""Requests for one text at once; hundreds would keep others from connecting."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as the LLM reads them."""

    trie: Trie
    nodes_MD: Tensor
    """Embeddings of the tree's tokens, on the CPU."""
    longest: int
    """Tokens of the longest label, its end included."""

    def beginning(self, node: int) -> Tensor:
        """Return the embeddings of a label's beginning, from the prefix (node 0) to a node."""
        path = []
        while node:
            path.append(node - 1)
            node = self.trie.parents[node - 1]
        return self.nodes_MD[path[::-1]]


@torch.no_grad()
def read_labels(bridge: Bridge, labels: Sequence[str]) -> Labels:
    """Return labels as the LLM reads them.

    Raises:
        DataError: a label that tokenises to nothing.
    """
    ids = bridge.processor.answer_ids(labels)
    trie = build_trie(ids)
    nodes_MD = bridge.embed(torch.tensor(trie.tokens, dtype=torch.long, device=bridge.device)).cpu()
    return Labels(trie, nodes_MD, max(map(len, ids)))


async def probabilities(upstream: Upstream, model: str, embeds_TD: Tensor, labels: Labels) -> list[float]:
    """Return the probability of each label after a text; they add up to 1.

    Args:
        upstream: where the LLM runs.
        model: its name there.
        embeds_TD: what the LLM reads before the answer.
        labels: to choose from.

    Raises:
        ApiError: whatever goes wrong.
    """
    trie = labels.trie
    wanted: dict[int, list[int]] = {}
    for _, node, token in trie.steps:
        if token not in wanted.setdefault(node, []):
            wanted[node].append(token)
    free = asyncio.Semaphore(MAX_ASKED_AT_ONCE)

    async def ask(node: int, tokens: list[int]) -> dict[tuple[int, int], float]:
        def body() -> bytes:
            prompt_TD = torch.cat([embeds_TD, labels.beginning(node)])
            return encode(next_token(model, {"prompt_embeds": payload(prompt_TD)}, tokens=tokens))

        async with free:
            found = read_log_probabilities(await upstream.ask(COMPLETIONS, await asyncio.to_thread(body)))
        if not found.keys() >= set(tokens):
            raise bad_request(NO_LOG_PROBABILITIES, code="unsupported")
        return {(node, token): found[token] for token in tokens}

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(node, tokens[start : start + MAX_LOGPROB_TOKEN_IDS]))
                for node, tokens in wanted.items()
                for start in range(0, len(tokens), MAX_LOGPROB_TOKEN_IDS)
            ]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    known = {step: value for task in tasks for step, value in task.result().items()}
    scores = [0.0] * trie.num_answers
    for label, node, token in trie.steps:
        scores[label] += known[node, token]
    return list(torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist())
