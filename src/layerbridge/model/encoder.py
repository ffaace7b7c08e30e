"""The frozen multilingual encoder: token ids -> the hidden states of its layers.

Shapes: B batch, L handed-over layers, S source tokens, E encoder width.

Layer 0 is the embedding output, layer N the last of N blocks, as transformers reports them: for mT5 and NLLB the last
is after the final norm and the others are the raw residual stream (method.md, "Layers").
"""

import re
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerbridge.errors import ConfigError
from layerbridge.model.found_out import found_out, stack_of


class FrozenEncoder(nn.Module):
    """An encoder that stays in eval mode whatever the trainer does.

    Its states are computed without gradient unless biases or adapters in it train. Inputs are right-padded, and the
    state of a real token does not depend on the padding.
    """

    def __init__(self, model: PreTrainedModel, layers: str | tuple[int, ...] = "all") -> None:
        super().__init__()
        self.model = model
        self.num_blocks: int = model.config.num_hidden_layers
        self.width: int = model.config.hidden_size
        self.layer_numbers = layer_numbers(layers, self.num_blocks)
        self.num_passes = 0
        """Forward passes so far; what a feature store spares does not count."""
        self.eval()

    def forward(self, source_ids_BS: Tensor, source_mask_BS: Tensor) -> list[Tensor]:
        """Return the L chosen layers' hidden states, each (B, S, E)."""
        self.num_passes += 1
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            states = self.model(
                input_ids=source_ids_BS,
                attention_mask=source_mask_BS.long(),
                output_hidden_states=True,
                return_dict=True,
            ).hidden_states
        if len(states) != self.num_blocks + 1:
            raise ConfigError(
                f"The encoder put out {len(states)} hidden states for {self.num_blocks} blocks; wanted "
                f"{self.num_blocks + 1}. This architecture does not report its layers in the usual way."
            )
        return [states[number] for number in self.layer_numbers]

    @torch.no_grad()
    def stream(self, source_ids_BS: Tensor, source_mask_BS: Tensor, on_layer: Callable[[int, Tensor], None]) -> None:
        """Hand over each chosen layer as soon as it is there; only what the receiver keeps is held.

        The layers are read off the blocks by hooks. Whether that gives this architecture's hidden states is found out
        once; where it does not, they are all held and handed over at the end.

        Args:
            source_ids_BS: right-padded.
            source_mask_BS: true at real tokens.
            on_layer: takes a layer's place among the L, and its states (B, S, E). They come in the encoder's order.
        """
        some_ids, some_mask = source_ids_BS[:1, :4], source_mask_BS[:1, :4]
        streams = found_out("streamed layers", self.model, lambda: self._found_to_stream(some_ids, some_mask))
        if not streams:
            for place, layer in enumerate(self(source_ids_BS, source_mask_BS)):
                on_layer(place, layer)
            return
        self.num_passes += 1
        self._stream(source_ids_BS, source_mask_BS, on_layer)

    def _stream(self, source_ids_BS: Tensor, source_mask_BS: Tensor, on_layer: Callable[[int, Tensor], None]) -> None:
        places = {number: place for place, number in enumerate(self.layer_numbers)}
        thread = threading.get_ident()  # another may be reading with the same encoder

        def give(number: int, states: Any) -> None:
            if number in places and threading.get_ident() == thread:
                on_layer(places[number], states[0] if isinstance(states, tuple) else states)

        def before_first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            give(0, args[0] if args else kwargs["hidden_states"])

        def after(number: int) -> Callable[[nn.Module, Any, Any], None]:
            return lambda block, args, output: give(number, output)

        blocks = stack_of(self.model, self.num_blocks)
        hooks = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
        hooks += [block.register_forward_hook(after(number)) for number, block in enumerate(blocks[:-1], start=1)]
        try:
            out = self.model(input_ids=source_ids_BS, attention_mask=source_mask_BS.long(), return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        give(self.num_blocks, out.last_hidden_state)

    def _found_to_stream(self, source_ids_BS: Tensor, source_mask_BS: Tensor) -> bool:
        if not len(stack_of(self.model, self.num_blocks)):
            return False
        streamed: dict[int, Tensor] = {}
        self._stream(source_ids_BS, source_mask_BS, streamed.__setitem__)
        known = self(source_ids_BS, source_mask_BS)
        self.num_passes -= 1
        return len(streamed) == len(known) and all(torch.equal(streamed[n], layer) for n, layer in enumerate(known))

    @property
    def trains(self) -> bool:
        """Whether anything inside the encoder trains."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    @property
    def max_tokens(self) -> int | None:
        """How many tokens its position embeddings allow; None if they set no limit."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and re.search(r"(position_embeddings|embed_positions)$", name):
                offset = getattr(module, "offset", 0) or (
                    module.padding_idx + 1 if module.padding_idx is not None else 0
                )
                return module.num_embeddings - offset
        return None

    def unfreeze_biases(self) -> None:
        """Let the encoder's bias vectors train.

        Raises:
            ConfigError: it has none (mT5 and T5 have none), or they are not float32.
        """
        biases = [p for name, p in self.model.named_parameters() if name.endswith("bias") and p.ndim == 1]
        if not biases:
            raise ConfigError(
                f"encoder.train_biases: a {self.model.config.model_type} encoder has no biases. Drop it, or use "
                "encoder.lora."
            )
        if biases[0].dtype != torch.float32:
            raise ConfigError(
                f"encoder.train_biases: biases of dtype {biases[0].dtype} would round most updates to nothing. Set "
                "encoder.dtype=float32."
            )
        for bias in biases:
            bias.requires_grad_(True)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode: the features must not depend on who trains around them."""
        return super().train(False)


def layer_numbers(layers: str | tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Return the layer numbers that `encoder.layers` means, in its order, for an encoder of `num_blocks` blocks.

    Raises:
        ConfigError: a number beyond the encoder's layers, or one twice.
    """
    if layers == "all":
        return tuple(range(1, num_blocks + 1))
    if isinstance(layers, str):
        count = int(layers.removeprefix("last:"))
        if count > num_blocks:
            raise ConfigError(f"encoder.layers asks for the last {count} layers; this encoder has {num_blocks}.")
        return tuple(range(num_blocks - count + 1, num_blocks + 1))
    numbers = tuple(number if number >= 0 else num_blocks + 1 + number for number in layers)
    for asked, number in zip(layers, numbers, strict=True):
        if not 0 <= number <= num_blocks:
            raise ConfigError(
                f"encoder.layers asks for layer {asked}; this encoder has layers 0 (embeddings) to {num_blocks}."
            )
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"encoder.layers names a layer twice: {list(layers)}.")
    return numbers
