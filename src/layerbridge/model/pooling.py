"""Pooling: one fused state a source token -> the states that become soft tokens, all of them or fewer.

Shapes: B batch, S source columns, N source tokens of the whole batch, M soft tokens of the whole batch, C their columns
as a padded batch, E width of a fused state (X: of any), D LLM width.

Ours: the paper hands over every token. Which soft tokens there are is said here alone, by `SoftTokens`; whatever
packs, pads or counts them asks it. Layer weights stay those of the source tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from layerbridge.config import PoolingConfig
from layerbridge.errors import ConfigError, unknown_name
from layerbridge.model.states import RealTokens, States


class SoftTokens(NamedTuple):
    """A batch's soft tokens, or the states that become them, and where each stands."""

    tokens_MX: Tensor
    """In any order: fused states (M, E), or projected ones (M, D)."""
    rows_M: Tensor
    """Of each, its place `row * C + column` in the padded batch."""
    mask_BC: Tensor
    """True at soft tokens, these first."""

    def pad(self) -> Tensor:
        """Return them as the padded batch (B, C, X), zero at padding."""
        batch, columns = self.mask_BC.shape
        flat = self.tokens_MX.new_zeros((batch * columns, self.tokens_MX.shape[-1]))
        return flat.index_copy(0, self.rows_M, self.tokens_MX).view(batch, columns, -1)

    def of(self, tokens_MX: Tensor) -> Self:
        """Return others in the same places."""
        return self._replace(tokens_MX=tokens_MX)


Pooling = Callable[[Tensor, States, Tensor], SoftTokens]
"""From fused_NE, the states that say which token is which, and source_mask_BS, real tokens first."""


def _every_token(fused_NE: Tensor, states: States, source_mask_BS: Tensor) -> SoftTokens:
    return SoftTokens(fused_NE, states.rows_N, source_mask_BS)


def _means(fused_NE: Tensor, states: States, source_mask_BS: Tensor, size: int | None = None) -> SoftTokens:
    """Average each `size` consecutive tokens of a text, the rest at its end among themselves; all tokens by default."""
    batch, columns = source_mask_BS.shape
    size = min(size or columns, columns)
    starts_C = torch.arange(0, columns, size, device=source_mask_BS.device)
    counts_BC = (source_mask_BS.sum(dim=1, keepdim=True) - starts_C).clamp(0, size)
    # Sums over a padded batch: adding at indices would not be the same from run to run on a GPU.
    filled_BSE = F.pad(states.pad(fused_NE), (0, 0, 0, len(starts_C) * size - columns))
    sums_BCE = filled_BSE.view(batch, len(starts_C), size, -1).sum(dim=2)
    means_BCE = sums_BCE / counts_BC.clamp(min=1).unsqueeze(-1)
    tokens = RealTokens(counts_BC > 0)
    return SoftTokens(tokens.pick(means_BCE), tokens.rows_n, counts_BC > 0)


def _tokens_and_mean(fused_NE: Tensor, states: States, source_mask_BS: Tensor) -> SoftTokens:
    batch, columns = source_mask_BS.shape
    means_BE = _means(fused_NE, states, source_mask_BS).tokens_MX
    lengths_B = source_mask_BS.sum(dim=1)
    rows_N = states.rows_N + states.rows_N // columns  # a column more in each row before
    ends_B = torch.arange(batch, device=lengths_B.device) * (columns + 1) + lengths_B
    return SoftTokens(
        torch.cat([fused_NE, means_BE]),
        torch.cat([rows_N, ends_B]),
        torch.arange(columns + 1, device=lengths_B.device) <= lengths_B[:, None],
    )


POOLINGS: dict[str, Callable[[PoolingConfig], Pooling]] = {
    "none": lambda config: _every_token,
    "mean": lambda config: _means,
    "every": lambda config: partial(_means, size=config.size),
    "append_mean": lambda config: _tokens_and_mean,
}
"""Pooling name in a recipe -> builder."""


def num_soft_tokens(config: PoolingConfig, num_tokens: int) -> int:
    """Return how many soft tokens a text of so many source tokens has."""
    match config.name:
        case "mean":
            return 1
        case "every":
            return -(-num_tokens // (config.size or num_tokens))
        case "append_mean":
            return num_tokens + 1
        case _:
            return num_tokens


def build_pooling(config: PoolingConfig) -> Pooling:
    """Return the pooling that `config` names.

    Raises:
        ConfigError: unknown name.
    """
    if config.name not in POOLINGS:
        raise ConfigError(unknown_name("pooling", config.name, POOLINGS))
    return POOLINGS[config.name](config)
