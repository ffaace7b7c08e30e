"""The answers to choose from as one tree, which an LLM reads in one row. Pure: lists and small tensors.

Shapes: B batch, N answers, M nodes of the tree, K the prefix's last position and the nodes (M + 1), P steps of all
answers, T positions of the prefix, V LLM vocabulary.

A node is an answer's beginning; answers that begin alike share nodes. Node 0 is the prefix itself, and the end token of
an answer is no node, as nothing is predicted after it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**22
"""Logits that are normalised at once, so that the float32 copy of all of them never exists."""


class Trie(NamedTuple):
    """N answers as one tree of M nodes behind the prefix (node 0)."""

    tokens: list[int]
    """Of nodes 1 to M, each after its parent."""
    depths: list[int]
    """Of nodes 1 to M: tokens behind the prefix, from 1."""
    parents: list[int]
    """Of nodes 1 to M."""
    steps: list[tuple[int, int, int]]
    """(answer, node, token): this answer goes on from this node with this token; the last one with its end token."""
    children: dict[tuple[int, int], int]
    """(node, token) -> the node where that token leads."""
    num_answers: int


def build_trie(rows: Sequence[Sequence[int]]) -> Trie:
    """Return the answers' trie; a row is an answer's tokens with the end token."""
    trie = Trie([], [], [], [], {}, len(rows))
    for answer, row in enumerate(rows):
        node = 0
        for depth, token in enumerate(row[:-1], start=1):
            trie.steps.append((answer, node, token))
            child = trie.children.get((node, token))
            if child is None:
                trie.tokens.append(token)
                trie.depths.append(depth)
                trie.parents.append(node)
                child = trie.children[node, token] = len(trie.tokens)
            node = child
        trie.steps.append((answer, node, row[-1]))
    return trie


def sight(trie: Trie, mask_BT: Tensor, *, dtype: torch.dtype, behind_cache: bool) -> Tensor:
    """Return the additive attention mask of `[prefix | nodes]`: (B, 1, T + M, T + M), or the nodes' M rows of it alone.

    A prefix position sees what stands before it, a node the prefix and its own beginning. A pad sees itself alone:
    attention over nothing would be no number in some kernels.

    Args:
        trie: with M nodes.
        mask_BT: true at the prefix's real positions.
        dtype: of the mask, that of what the LLM reads.
        behind_cache: only the nodes are read, the prefix is in the cache.
    """
    batch, length = mask_BT.shape
    num_nodes = len(trie.tokens)
    own_MM = torch.eye(num_nodes, dtype=torch.bool)
    for node, parent in enumerate(trie.parents):
        if parent:
            own_MM[node] |= own_MM[parent - 1]
    own_MM = own_MM.to(mask_BT.device)
    nodes_BMX = torch.cat(
        [mask_BT[:, None].expand(-1, num_nodes, -1), own_MM.expand(batch, -1, -1)],
        dim=-1,
    )
    if behind_cache:
        sees_BYX = nodes_BMX
    else:
        causal_TT = torch.ones((length, length), dtype=torch.bool, device=mask_BT.device).tril()
        itself_TT = torch.eye(length, dtype=torch.bool, device=mask_BT.device)
        prefix_BTT = (mask_BT[:, None] & causal_TT) | itself_TT
        nothing_BTM = mask_BT.new_zeros((batch, length, num_nodes))
        sees_BYX = torch.cat([torch.cat([prefix_BTT, nothing_BTM], dim=-1), nodes_BMX], dim=1)
    zeros = torch.zeros(sees_BYX.shape, dtype=dtype, device=mask_BT.device)
    return zeros.masked_fill_(~sees_BYX, torch.finfo(dtype).min)[:, None]


def add_up(trie: Trie, logits_BKV: Tensor) -> Tensor:
    """Return each answer's log-probability (B, N), float32, from the logits at the prefix's end and at the nodes."""
    answers_P, nodes_P, tokens_P = torch.tensor(trie.steps, device=logits_BKV.device).T
    rows = max(1, LOGITS_AT_ONCE // logits_BKV[0].numel())
    steps_BP = torch.cat(
        [
            # Faster than logsumexp and a gather where a few rows fit the processor's caches.
            torch.log_softmax(some_bKV, dim=-1, dtype=torch.float32)[:, nodes_P, tokens_P]
            for some_bKV in logits_BKV.split(rows)
        ]
    )
    return steps_BP.new_zeros((len(steps_BP), trie.num_answers)).index_add_(1, answers_P, steps_BP)


def walk(trie: Trie, logits_BKV: Tensor, *, ends: Sequence[int], max_new_tokens: int) -> list[list[int]]:
    """Return each row's most probable next tokens, as far as the trie's logits tell them.

    A row ends with an end token, with the token that leaves the trie (which one is known, what follows is not), or
    after `max_new_tokens`.
    """
    written: list[list[int]] = [[] for _ in logits_BKV]
    nodes = dict.fromkeys(range(len(written)), 0)
    """Of each row that is still inside."""
    for _ in range(max_new_tokens):
        if not nodes:
            break
        places = torch.tensor([list(nodes), list(nodes.values())], device=logits_BKV.device)
        tokens = logits_BKV[places[0], places[1]].argmax(-1).tolist()
        inside = {}
        for (row, node), token in zip(nodes.items(), tokens, strict=True):
            written[row].append(token)
            child = trie.children.get((node, token))
            if token not in ends and child is not None:
                inside[row] = child
        nodes = inside
    return written
