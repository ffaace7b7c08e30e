"""Fusion: the hidden states of all encoder layers -> one vector a token.

Shapes: B batch, L encoder layers, S source tokens, N real tokens of the batch, E encoder width, F feed-forward width,
K heads, R rank. With K heads a fused state is K x E wide, and E stands for that too.

Every fusion is a rule for weights_NL; the fused state is the weighted sum of the (optionally RMS-normalised) layers.
With K heads it is K such sums side by side, and the weights told are the mean over heads.
Fusions see real tokens only and read the layers through `States`, which never stacks them. `FUSIONS` is the one table
of them.

Method: "Global Softmax" and "Transformer Softmax" of arXiv 2508.09091; `last_layer` is LangBridge (arXiv 2401.10695).

Differs from the paper: layers may be RMS-normalised first; the Transformer Softmax is computed in an exact form that
needs one vector a token instead of L + 1 (see the class); its key bias, which cancels in the softmax, does not exist;
plain and published temperature are two fusions with two names; weights may be sparse (`sparse_weights.py`); heads.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from layerbridge import config as cfg
from layerbridge.errors import ConfigError, ModelError, unknown_name
from layerbridge.model.mixing import RMS_EPSILON
from layerbridge.model.sparse_weights import weights_named
from layerbridge.model.states import LiveStates, States

HEAD_SPREAD = 0.02
"""Standard deviation of what several heads start with, where one head starts with zeros."""


class Mixed(NamedTuple):
    """What a fusion makes of a batch's real tokens, in the order of the states that it was given."""

    states_NE: Tensor
    """Fused states, in the dtype of the fusion's parameters."""
    weights_NL: Tensor
    """Each token's layer weights, summing to one; the mean over heads."""


class Fused(NamedTuple):
    """The same as a padded batch."""

    states_BSE: Tensor
    """Fused states; zero at padding."""
    weights_BSL: Tensor
    """Each token's layer weights; zero at padding."""


class Fusion(nn.Module):
    """A rule for layer weights.

    Args:
        layer_numbers: the encoder's own numbers of the L layers that come in, for reports and `single_layer`.
        width: E.
        normalize_layers: divide every state by its root mean square before it is scored and mixed.
        weights: how logits become weights, a name of `WEIGHTS`.
        temperature: that logits are divided by first.
        heads: K mixes a token.
    """

    mixes = True
    """Whether it draws on more than one layer."""
    matmul_dtype: torch.dtype | None = None
    """Of matrix products on one vector a token, such as bfloat16 for states that are no more exact than that; by
    default the parameters' own. Scores, softmaxes, sums over layers and norms keep theirs."""

    def __init__(
        self,
        *,
        layer_numbers: Sequence[int],
        width: int,
        normalize_layers: bool = False,
        weights: str = "softmax",
        temperature: float = 1.0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.layer_numbers = tuple(layer_numbers)
        self.num_layers = len(self.layer_numbers)
        self.width = width
        self.normalize_layers = normalize_layers
        self.temperature = temperature
        self.num_heads = heads
        self._weights_of = weights_named(weights)

    @property
    def out_width(self) -> int:
        """Width of a fused state."""
        return self.num_heads * self.width

    def forward(self, layers: Sequence[Tensor], mask_BS: Tensor) -> Fused:
        """Mix the layers of a padded batch.

        Args:
            layers: L tensors (B, S, E).
            mask_BS: true at real tokens.

        Raises:
            ModelError: another number or width of layers than this fusion was built for.
        """
        states = LiveStates.of(layers, mask_BS)
        return Fused(*(states.pad(part) for part in self.mix(states)))

    def mix(self, states: States) -> Mixed:
        """Mix the layers of a batch's real tokens.

        Raises:
            ModelError: another number or width of layers than this fusion was built for.
        """
        self._check(states)
        dtype = self._dtype(states)
        scale_NL = states.inverse_rms(dtype) if self.normalize_layers else None
        weights = self.weigh(states, scale_NL, dtype)
        heads = (weights,) if weights.ndim == 2 else weights.unbind()
        mixes = [states.weighted_sum(one_NL if scale_NL is None else one_NL * scale_NL) for one_NL in heads]
        if len(heads) == 1:
            return Mixed(mixes[0], heads[0])
        return Mixed(torch.cat(mixes, dim=-1), weights.mean(dim=0))

    def weigh(self, states: States, scale_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return weights (N, L) that sum to one over the layers, in `dtype`; with several heads (K, N, L).

        Args:
            states: the raw states.
            scale_NL: what every state is to be multiplied by first, or None.
            dtype: that of the fusion's arithmetic.
        """
        raise NotImplementedError

    def to_weights(self, logits_XL: Tensor) -> Tensor:
        """Return what logits become at the fusion's temperature: weights that sum to one over the layers."""
        return self._weights_of(logits_XL if self.temperature == 1.0 else logits_XL / self.temperature)

    def _start(self, size: int) -> Tensor:
        """Return what a query, or logits, start as: zeros, but with several heads no two alike, (K, size)."""
        return torch.zeros(size) if self.num_heads == 1 else HEAD_SPREAD * torch.randn(self.num_heads, size)

    def _check(self, states: States) -> None:
        if (states.num_layers, states.width) != (self.num_layers, self.width):
            raise ModelError(
                f"Fusion got {states.num_layers} layers of width {states.width}; it was built for {self.num_layers} "
                f"layers of width {self.width}. Build it from the encoder that feeds it."
            )

    def _dtype(self, states: States) -> torch.dtype:
        parameter = next(self.parameters(), None)
        return parameter.dtype if parameter is not None else torch.promote_types(states.dtype, torch.float32)


class OneLayer(Fusion):
    """One layer alone (`last_layer`, `single_layer`); the others are not even read."""

    mixes = False

    def __init__(self, position: int, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        self.position = position

    def mix(self, states: States) -> Mixed:
        """Return the layer, and weights that are one at it."""
        self._check(states)
        dtype = self._dtype(states)
        state_NE = states.layer(self.position).to(dtype)
        if self.normalize_layers:
            state_NE = F.rms_norm(state_NE, (self.width,), eps=RMS_EPSILON)
        one_hot_L = torch.zeros(self.num_layers, dtype=dtype, device=state_NE.device)
        one_hot_L[self.position] = 1.0
        return Mixed(state_NE, one_hot_L.expand(len(state_NE), self.num_layers))


class SameForAllTokens(Fusion):
    """One weight a layer, known before any state is read: the sum can run while the encoder does.

    Several heads would each let the encoder run, so they mix held states.
    """

    def layer_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return weights (L,) that sum to one; with several heads (K, L)."""
        raise NotImplementedError

    def weigh(self, states: States, scale_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the same weights for every token."""
        weights_K1L = self.layer_weights(dtype, states.device).view(self.num_heads, 1, self.num_layers)
        return weights_K1L.expand(-1, len(states.rows_N), -1)

    def mix(self, states: States) -> Mixed:
        """Return the weighted sum, and the same weights for every token."""
        if self.num_heads > 1:
            return super().mix(states)
        self._check(states)
        weights_L = self.layer_weights(self._dtype(states), states.device)
        states_NE = states.layer_sum(weights_L, normalized=self.normalize_layers)
        return Mixed(states_NE, weights_L.expand(len(states.rows_N), self.num_layers))


class LayerMean(SameForAllTokens):
    """All layers alike; nothing to learn."""

    def layer_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return 1 / L everywhere."""
        return torch.full((self.num_layers,), 1.0 / self.num_layers, dtype=dtype, device=device)


class GlobalSoftmax(SameForAllTokens):
    """p = softmax(w / temperature), one learned w a layer, all zero at the start: the layer mean.

    Parameter shape: logits_L is (L,); with several heads (K, L).
    """

    def __init__(self, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        self.logits_L = nn.Parameter(self._start(self.num_layers))

    def layer_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the weights of the learned logits."""
        return self.to_weights(self.logits_L)


class GlobalSoftmaxPublished(SameForAllTokens):
    """p = softmax(t w), t = 100 + 1e5 tau, w starts at 3e-5, tau at 1e-5: the form of arXiv 2508.09091's code.

    t moves by about 3 with every Adam step at the published learning rate of 3e-5, so the mix soon falls onto one
    layer; `GlobalSoftmax` is the variant that does not.
    """

    BASE = 100.0
    FACTOR = 1e5

    def __init__(self, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        self.logits_L = nn.Parameter(torch.full((self.num_layers,), 3e-5))
        self.tau = nn.Parameter(torch.tensor(1e-5))

    def layer_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the softmax of the learned logits at the learned temperature."""
        sharpness = self.BASE + self.FACTOR * self.tau
        return torch.softmax(sharpness * self.logits_L, dim=0)


class TransformerSoftmax(Fusion):
    """Weights per token from a one-layer transformer over `[c, h_1 + p_1, ..., h_L + p_L]` (arXiv 2508.09091).

    One post-norm encoder layer (one head, ReLU), its output at c through `Linear(E -> L)` and a softmax.

    Only the output at c is read, there is one layer, and c holds no token content, so its query is one constant vector.
    With q = W_q c + b_q the attention scores are, exactly, u . (h_l + p_l) with u = W_k^T q / sqrt(E), plus a constant
    that cancels; attention then mixes the *inputs*, and value, output projection, norms, feed-forward and head act on
    one vector a token. Attention dropout acts on the mixing weights a, so the value bias is scaled by their sum.

    Parameter shapes: positions_LE, token_E (c); query, key, value, attention_out (E, E); feedforward E -> F -> E.
    """

    def __init__(self, *, feedforward_width: int = 2048, dropout: float = 0.1, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        width = self.width
        self.dropout = dropout
        self.positions_LE = nn.Parameter(torch.randn(self.num_layers, width))
        self.token_E = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, feedforward_width)
        self.feedforward_out = nn.Linear(feedforward_width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.num_layers)
        self._init_like_torch()

    def _init_like_torch(self) -> None:
        """Start from the distribution of `torch.nn.MultiheadAttention`, whose query, key and value are one matrix."""
        bound = math.sqrt(6.0 / (self.width + 3 * self.width))
        for linear in (self.query, self.key, self.value):
            nn.init.uniform_(linear.weight, -bound, bound)
        for bias in (self.query.bias, self.value.bias, self.attention_out.bias):
            nn.init.zeros_(bias)

    def weigh(self, states: States, scale_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the transformer's softmax over layers, token by token."""
        direction_E = self.query(self.token_E) @ self.key.weight / math.sqrt(self.width)
        scores_NL = states.scores(direction_E)
        if scale_NL is not None:
            scores_NL = scores_NL * scale_NL
        scores_NL = scores_NL + self.positions_LE @ direction_E
        token_score_N1 = (self.token_E @ direction_E).expand(len(scores_NL), 1)
        attention = torch.softmax(torch.cat([token_score_N1, scores_NL], dim=-1), dim=-1)
        attention = self._drop(attention)
        token_N1, layers_NL = attention[:, :1], attention[:, 1:]

        mixed_NE = states.weighted_sum(layers_NL if scale_NL is None else layers_NL * scale_NL)
        mixed_NE = mixed_NE + layers_NL @ self.positions_LE + token_N1 * self.token_E
        with matmuls_in(self.matmul_dtype, states.device):
            value_NE = F.linear(mixed_NE, self.value.weight) + attention.sum(-1, keepdim=True) * self.value.bias
            x_NE = self.attention_norm(self.token_E + self._drop(self.attention_out(value_NE)))
            hidden_NF = self._drop(torch.relu(self.feedforward_in(x_NE)))
            x_NE = self.feedforward_norm(x_NE + self._drop(self.feedforward_out(hidden_NF)))
            logits_NL = self.head(x_NE)
        return self.to_weights(logits_NL.to(dtype))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class AttentionPool(Fusion):
    """Weights per token: softmax over layers of q . h_l / sqrt(E), one learned q, zero at the start: the layer mean.

    Parameter shape: query_E is (E,); with several heads (K, E).
    """

    def __init__(self, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        self.query_E = nn.Parameter(self._start(self.width))

    def weigh(self, states: States, scale_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the attention of the learned query over each token's layers."""
        query = self.query_E / math.sqrt(self.width)
        scores = states.scores(query) if query.ndim == 1 else torch.stack([states.scores(one_E) for one_E in query])
        return self.to_weights(scores if scale_NL is None else scores * scale_NL)


class LowRankSoftmax(Fusion):
    """Weights per token from two narrow matrices over a first mix of its layers: a small Transformer Softmax.

    One learned query q reads the token's layers, `m = sum_l softmax_l(q . h_l / sqrt(E)) h_l`, and the logits are
    `W_2 GELU(W_1 m + b_1) + b_2` with W_1 of E -> R and W_2 of R -> L. q, W_2 and b_2 are zero at the start: the layer
    mean. All tokens share the matrices, and all heads q, W_1 and b_1; K heads take W_2 of R -> K x L.

    Ours. Beside the Transformer Softmax it has no positions, values, norms or feed-forward part, and R (E + K L) + E
    weights instead of about 4 E^2 + 2 E F.
    """

    def __init__(self, *, rank: int = 16, **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        self.query_E = nn.Parameter(torch.zeros(self.width))
        self.down = nn.Linear(self.width, rank)
        self.up = nn.Linear(rank, self.num_heads * self.num_layers)
        nn.init.zeros_(self.up.weight)
        self.up.bias = nn.Parameter(self._start(self.num_layers).flatten())

    def weigh(self, states: States, scale_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the weights that the narrow matrices make of what the query read."""
        scores_NL = states.scores(self.query_E / math.sqrt(self.width))
        attention_NL = torch.softmax(scores_NL if scale_NL is None else scores_NL * scale_NL, dim=-1)
        read_NE = states.weighted_sum(attention_NL if scale_NL is None else attention_NL * scale_NL)
        with matmuls_in(self.matmul_dtype, states.device):
            logits = self.up(F.gelu(self.down(read_NE)))
        if self.num_heads > 1:
            logits = logits.unflatten(-1, (self.num_heads, self.num_layers)).transpose(0, 1)
        return self.to_weights(logits.to(dtype))


def matmuls_in(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    """Run matrix products in `dtype` (as torch's autocast does, norms in float32); as they are, if it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _last_layer(config: cfg.LastLayer, layer_numbers: tuple[int, ...], width: int) -> Fusion:
    return OneLayer(len(layer_numbers) - 1, layer_numbers=layer_numbers, width=width)


def _single_layer(config: cfg.SingleLayer, layer_numbers: tuple[int, ...], width: int) -> Fusion:
    wanted = config.layer if config.layer >= 0 else max(layer_numbers) + 1 + config.layer
    if wanted not in layer_numbers:
        raise ConfigError(
            f"Fusion single_layer asks for encoder layer {config.layer}, and the encoder hands over "
            f"{_ranges(layer_numbers)}. Choose one of these, or widen encoder.layers."
        )
    position, normalize = layer_numbers.index(wanted), config.normalize_layers
    return OneLayer(position, layer_numbers=layer_numbers, width=width, normalize_layers=normalize)


def _from_options(kind: type[Fusion]) -> Callable[..., Fusion]:
    def build(config: cfg.FrozenConfig, layer_numbers: tuple[int, ...], width: int) -> Fusion:
        return kind(layer_numbers=layer_numbers, width=width, **config.model_dump(exclude={"name"}))

    return build


FUSIONS: dict[str, Callable[..., Fusion]] = {
    "last_layer": _last_layer,
    "single_layer": _single_layer,
    "layer_mean": _from_options(LayerMean),
    "global_softmax": _from_options(GlobalSoftmax),
    "global_softmax_published": _from_options(GlobalSoftmaxPublished),
    "transformer_softmax": _from_options(TransformerSoftmax),
    "attention_pool": _from_options(AttentionPool),
    "low_rank_softmax": _from_options(LowRankSoftmax),
}
"""Fusion name in a recipe -> builder."""


def build_fusion(config: cfg.FusionConfig, *, layer_numbers: Sequence[int], width: int) -> Fusion:
    """Build the fusion that `config` names, for layers `layer_numbers` of width E.

    Raises:
        ConfigError: unknown fusion, or a single layer that the encoder does not hand over.
    """
    if config.name not in FUSIONS:
        raise ConfigError(unknown_name("fusion", config.name, FUSIONS))
    return FUSIONS[config.name](config, tuple(layer_numbers), width)


def _ranges(numbers: Sequence[int]) -> str:
    ordered = sorted(numbers)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"layers {ordered[0]} to {ordered[-1]}" if whole else f"layers {', '.join(map(str, ordered))}"
