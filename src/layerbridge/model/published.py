"""Taking in checkpoints of the published code (arXiv 2508.09091).

Those are whole-model `pytorch_model.bin` files. Only fusion, projector and boundary are read from them, without
unpickling anything but tensors; the frozen rest is ignored, since the bases load themselves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerbridge.config import (
    BridgeConfig,
    GlobalSoftmaxPublished,
    LastLayer,
    ProjectorConfig,
    TransformerSoftmax,
)
from layerbridge.errors import CheckpointError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_trained

FUSION = "encoder_mt.layer_weights."
LAYER = f"{FUSION}transformerEncoder.layers.0."
MAPPING = "mapping."

TRANSFORMER_SOFTMAX = {
    f"{LAYER}self_attn.out_proj": "attention_out",
    f"{LAYER}norm1": "attention_norm",
    f"{LAYER}linear1": "feedforward_in",
    f"{LAYER}linear2": "feedforward_out",
    f"{LAYER}norm2": "feedforward_norm",
    f"{FUSION}layer_weights": "head",
}
"""Published module -> ours, for those with a weight and a bias of the same meaning."""


def import_published(path: str | Path, config: BridgeConfig, *, device: str | torch.device | None = None) -> Bridge:
    """Return a bridge with the trained part of a published checkpoint.

    Args:
        path: `pytorch_model.bin`, or its folder.
        config: the two bases; fusion and projector are read from the checkpoint and override the config's.
        device: for everything; by default the first GPU if there is one, else the CPU.

    Raises:
        CheckpointError: not such a checkpoint, or one for bases of other widths or layers.
    """
    path = Path(path)
    path = path / "pytorch_model.bin" if path.is_dir() else path
    state = translate(_read(path), where=str(path))
    kinds = {
        "fusion.head.weight": TransformerSoftmax(),
        "fusion.tau": GlobalSoftmaxPublished(),
    }
    fusion: Any = next((kind for name, kind in kinds.items() if name in state), LastLayer())
    if isinstance(fusion, TransformerSoftmax):
        fusion = TransformerSoftmax(feedforward_width=state["fusion.feedforward_in.weight"].shape[0])
    config = config.model_copy(update={"fusion": fusion, "projector": ProjectorConfig()})
    bridge = Bridge.build(config, device=device)
    load_trained(bridge, state, where=str(path))
    return bridge


def translate(published: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Return our names and shapes for a published state dict; what is frozen or not ours is left out."""
    try:
        state = {
            "projector.layers.weight": published[f"{MAPPING}mlp.fc.weight"],
            "projector.layers.bias": published[f"{MAPPING}mlp.fc.bias"],
            "boundary": published[f"{MAPPING}end_boundary"].flatten(),
        }
        if f"{FUSION}cls" in published:
            state |= _transformer_softmax(published)
        elif "encoder_mt.layer_weights_lb" in published:
            state |= {
                "fusion.logits_L": published["encoder_mt.layer_weights_lb"].flatten(),
                "fusion.tau": published["encoder_mt.temp"].reshape(()),
            }
    except KeyError as error:
        raise CheckpointError(
            f"{where} lacks the tensor {error.args[0]!r}, so it is not a checkpoint of the published code. "
            f"It holds {len(published)} tensors, such as {', '.join(sorted(published)[:3]) or 'none'}."
        ) from None
    return {name: tensor.float() for name, tensor in state.items()}


def _transformer_softmax(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    query, key, value = published[f"{LAYER}self_attn.in_proj_weight"].chunk(3)
    query_bias, _, value_bias = published[f"{LAYER}self_attn.in_proj_bias"].chunk(3)  # the key's cancels
    state = {
        "positions_LE": published[f"{FUSION}layer_pos_emb"],
        "token_E": published[f"{FUSION}cls"].flatten(),
        "query.weight": query,
        "query.bias": query_bias,
        "key.weight": key,
        "value.weight": value,
        "value.bias": value_bias,
    }
    for theirs, ours in TRANSFORMER_SOFTMAX.items():
        state |= {f"{ours}.{kind}": published[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return {f"fusion.{name}": tensor for name, tensor in state.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"No published checkpoint at {path}; wanted a pytorch_model.bin or its folder.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged and for refused files
        raise CheckpointError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}). It is damaged, or holds pickled "
            "objects, which are never loaded."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; wanted a state dict.")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
