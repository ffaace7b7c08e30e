"""Feature store: the frozen encoder's states on disk, so that one encoder pass serves every fusion, seed and epoch.

Shapes: B batch, L encoder layers, S source tokens, E encoder width, N tokens of a shard.

A frozen encoder in eval mode gives a text the same states every time. They are kept by the text's token ids, in
safetensors files that are mapped into memory, not read: shard = states (N, L, E), lengths and digests of its texts. A
shard is written in one step; what was cut off in the middle of one is encoded again, in the same batches, so that the
states do not depend on interruptions.
"""

from torch import Tensor


class FeatureStore:
    """States of texts that were encoded before."""

    def lookup(self, source_ids_BS: Tensor, source_mask_BS: Tensor) -> list[Tensor] | None:
        """Return L layers (B, S, E), zero at padding; None if any text of the batch is not there."""
        raise NotImplementedError
