"""A frozen LLM spread over processes, for LLMs that one GPU cannot hold.

Each of P processes keeps 1/P of every decoder layer; a layer's weights are gathered when the layer computes and dropped
after it (torch's `fully_shard`, ZeRO stage 3 of arXiv 1910.02054, of weights without gradients). Embeddings, head and
norms outside the layers stay whole in every process: the bridge reads embeddings outside the LLM's forward pass, and
head and embeddings are often one tensor.
"""

import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from layerbridge.config import BridgeConfig
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.model.found_out import stack_of


def check_shardable(config: BridgeConfig, bridge: Bridge | None = None) -> None:
    """Refuse what cannot be sharded, before a model is loaded.

    Raises:
        ConfigError: there is no other process, the LLM is quantised or has adapters, or it is on a device already.
    """
    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise ConfigError(
            "training.shard_llm spreads the LLM over several processes, and there is one. Start them with "
            "`torchrun --nproc_per_node GPUS -m layerbridge.cli train RECIPE`, or drop training.shard_llm."
        )
    for part, what in (("quantization", "is quantised"), ("lora", "has adapters that train")):
        if getattr(config.llm, part) is not None:
            raise ConfigError(
                f"training.shard_llm: the LLM {what} (llm.{part}), and only frozen weights as they were loaded are "
                f"sharded. Drop llm.{part} or training.shard_llm."
            )
    if bridge is not None:
        raise ConfigError(
            "training.shard_llm reads the LLM into main memory and shards it from there, and a bridge was given that "
            "is built already. Give no bridge, or drop training.shard_llm."
        )


def build_sharded(config: BridgeConfig, *, seed: int, device: torch.device) -> Bridge:
    """Load both base models with the LLM spread over all processes; see `Bridge.build`.

    The processes of a machine take turns, so that its main memory holds one whole LLM at a time.
    """
    turn, turns = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    bridge = None
    for now in range(turns):
        if now == turn:
            bridge = Bridge.build(config, device="cpu", seed=seed)
            shard_llm(bridge, device, mesh)
        distributed.barrier()
    assert bridge is not None, "torchrun numbers the processes of a machine from 0"
    return bridge


def shard_llm(bridge: Bridge, device: torch.device, mesh: DeviceMesh) -> None:
    """Spread a bridge's LLM over all processes, and put the rest of the bridge on this process's device.

    From here on the LLM computes only when all processes call it, each with rows of its own.

    Args:
        bridge: on the CPU, where the LLM was read whole.
        device: of this process.
        mesh: of all processes.

    Raises:
        ConfigError: its decoder layers are not found.
    """
    layers = decoder_layers(bridge.llm)
    for layer in layers:  # one at a time, so that the device never holds more than one whole
        fully_shard(layer, mesh=mesh)
    whole = {parameter for parameter in bridge.llm.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(bridge.llm, mesh=mesh, ignored_params=whole)  # so that one layer is gathered while another computes
    _move_the_rest(bridge, device)


def decoder_layers(llm: PreTrainedModel) -> list[nn.Module]:
    """Return an LLM's decoder layers.

    Raises:
        ConfigError: there is no list of as many modules as the LLM has layers.
    """
    wanted = llm.config.get_text_config().num_hidden_layers
    if layers := list(stack_of(llm, wanted)):
        return layers
    raise ConfigError(
        f"training.shard_llm: found no list of {wanted} decoder layers in a {llm.config.model_type} LLM. Drop "
        "training.shard_llm."
    )


def _move_the_rest(bridge: Bridge, device: torch.device) -> None:
    """Put all that is not sharded on a device."""
    for module in bridge.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor) and parameter.device != device:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
