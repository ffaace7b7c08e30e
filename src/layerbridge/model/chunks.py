"""Dividing a batch into chunks of rows of like length, so that little of what is computed is padding."""

from collections.abc import Sequence

import numpy as np

PASS_COSTS = {"cpu": 24, "cuda": 2048}
"""What a pass more costs, in tokens of a pass: where a few tokens fill the machine, small passes are no slower."""


def like_length(lengths: Sequence[int], device: str) -> list[list[int]]:
    """Return chunks of row numbers, longest rows first, with the least padding and passes together.

    Exact: the least sum over chunks of rows x longest row, and a fixed cost a chunk (`PASS_COSTS`). Rows keep their
    order where one chunk is best.

    Args:
        lengths: tokens of each row.
        device: type of the device that computes, such as `cpu`.
    """
    cost = PASS_COSTS.get(device, max(PASS_COSTS.values()))
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = np.array([lengths[row] for row in order])
    best = np.zeros(len(order) + 1, dtype=np.int64)
    begins = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        # A last chunk from `begin` to `end` is as wide as its first row.
        totals = best[:end] + (end - np.arange(end)) * sizes[:end] + cost
        begins[end] = totals.argmin()
        best[end] = totals[begins[end]]
    chunks: list[list[int]] = []
    end = len(order)
    while end:
        chunks.append(order[begins[end] : end])
        end = int(begins[end])
    return [list(range(len(lengths)))] if len(chunks) == 1 else chunks[::-1]
