"""Which encoder layers each token of a text draws on, for people to look at.

Shapes: B batch, S source tokens, L encoder layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from layerbridge.model.batches import BATCH_SIZE, BATCH_TOKENS, ask_in_batches

if TYPE_CHECKING:
    from layerbridge.model.bridge import Bridge


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerWeights:
    """Of one text."""

    text: str
    tokens: tuple[str, ...]
    """S, as the encoder's tokenizer spells them, its markers (such as U+2581) kept; those that were read, if cut."""
    weights: Tensor
    """(S, L): a token's weights over the layers, summing to one; float32, on the CPU."""
    layers: tuple[int, ...]
    """L: the encoder's numbers of the layers."""


class LayerWeightsMixin:
    """`layer_weights`, for a bridge."""

    def layer_weights(
        self,
        texts: Sequence[str],
        *,
        max_source_tokens: int = 512,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> list[LayerWeights]:
        """Return the layer weights of each text's tokens, whatever the number of texts.

        Args:
            texts: what the encoder reads, in a list.
            max_source_tokens: encoder tokens a text; longer texts are cut.
            batch_tokens: tokens of a batch, padding included; halved by itself when memory runs out.
            batch_size: texts of a batch at most.

        Raises:
            DataError: no texts, one text in place of a list, or one that tokenises to nothing.
            ConfigError: one text alone does not fit the memory.
        """
        bridge = cast("Bridge", self)

        def ask(some: list[str], _: list[str] | None) -> list[LayerWeights]:
            return _layer_weights(bridge, some, max_source_tokens)

        return ask_in_batches(
            bridge.processor,
            ask,
            texts,
            max_source_tokens=max_source_tokens,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
        )


@torch.inference_mode()
def _layer_weights(bridge: "Bridge", texts: list[str], max_source_tokens: int) -> list[LayerWeights]:
    bridge.eval()
    inputs = bridge.processor(texts, max_source_tokens=max_source_tokens).to(bridge.device)
    weights_BSL = bridge.fuse(inputs).weights_BSL.float().cpu()
    ids_BS, lengths_B = inputs.source_ids.tolist(), inputs.source_mask.sum(dim=1).tolist()
    return [
        LayerWeights(
            text=text,
            tokens=tuple(bridge.processor.encoder_tokenizer.convert_ids_to_tokens(ids[:length])),
            weights=weights_SL[:length].clone(),  # a view would keep the whole batch alive
            layers=bridge.encoder.layer_numbers,
        )
        for text, ids, length, weights_SL in zip(texts, ids_BS, lengths_B, weights_BSL, strict=True)
    ]
