"""The Transformer Softmax of arXiv 2508.09091 as its text has it: torch's own encoder layer over every token's layers.

The independent, straightforward form that the fast one is tested and timed against. Nothing in the package uses it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PublishedTransformerSoftmax(nn.Module):
    """`[c, h_1 + p_1, ..., h_L + p_L]` -> one post-norm `nn.TransformerEncoderLayer` -> output at c -> softmax."""

    def __init__(self, num_layers: int, width: int, feedforward_width: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.layer_pos_emb = nn.Parameter(torch.randn(num_layers, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=1, dim_feedforward=feedforward_width, dropout=dropout, batch_first=True
        )
        self.transformerEncoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.layer_weights = nn.Linear(width, num_layers)

    def forward(self, layers: list[Tensor], mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return fused states (B, S, E) and weights (B, S, L); zero at padding."""
        stacked_BSLE = torch.stack(layers, dim=2)
        b, s, num_layers, width = stacked_BSLE.shape
        tokens_TLE = stacked_BSLE.reshape(b * s, num_layers, width) + self.layer_pos_emb
        sequence = torch.cat([self.cls.expand(b * s, 1, width), tokens_TLE], dim=1)
        out_TE = self.transformerEncoder(sequence)[:, 0]
        weights_BSL = torch.softmax(self.layer_weights(out_TE), dim=-1).reshape(b, s, num_layers)
        weights_BSL = weights_BSL * mask_BS.unsqueeze(-1)
        return (weights_BSL.unsqueeze(-1) * stacked_BSLE).sum(dim=2), weights_BSL


def copy_into(fast: nn.Module, reference: PublishedTransformerSoftmax) -> None:
    """Give the fast form (`layerbridge.model.fusion.TransformerSoftmax`) the reference's parameters."""
    with torch.no_grad():
        for name, twin in twins(reference, lambda parameter: parameter).items():
            parameter = fast.get_parameter(name)
            parameter.copy_(twin.reshape(parameter.shape))


def twins(reference: PublishedTransformerSoftmax, view: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """Return the reference's parameters (or what `view` makes of them, such as their gradients) by our names.

    The key bias is left out: it cancels in the softmax, and the fast form does not have it.
    """
    layer = reference.transformerEncoder.layers[0]
    query_weight, key_weight, value_weight = view(layer.self_attn.in_proj_weight).chunk(3)
    query_bias, _, value_bias = view(layer.self_attn.in_proj_bias).chunk(3)
    modules = {
        "attention_out": layer.self_attn.out_proj,
        "attention_norm": layer.norm1,
        "feedforward_in": layer.linear1,
        "feedforward_out": layer.linear2,
        "feedforward_norm": layer.norm2,
        "head": reference.layer_weights,
    }
    return {
        "positions_LE": view(reference.layer_pos_emb),
        "token_E": view(reference.cls),
        "query.weight": query_weight,
        "query.bias": query_bias,
        "key.weight": key_weight,
        "value.weight": value_weight,
        "value.bias": value_bias,
        **{f"{name}.weight": view(module.weight) for name, module in modules.items()},
        **{f"{name}.bias": view(module.bias) for name, module in modules.items()},
    }
