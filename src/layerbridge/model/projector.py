"""Projector: fused encoder states -> soft tokens in the LLM's embedding space.

Shapes: M soft tokens of a batch, Z width of a fused state (the encoder's, times the fusion's heads), D LLM width.

`linear` is the published one (arXiv 2508.09091, arXiv 2401.10695). Differs from the papers: `mlp`, and `match_rms`,
which gives every soft token the root mean square of the LLM's own input embeddings, measured on what its embedding
module puts out (Gemma scales inside it); and noise on what it reads in training.
"""

import torch
from torch import Tensor, nn

from layerbridge.config import ProjectorConfig
from layerbridge.errors import ConfigError, unknown_name


class Projector(nn.Module):
    """`layers` then, if `target_rms` is given, each token scaled to that root mean square."""

    def __init__(self, layers: nn.Module, target_rms: float | None) -> None:
        super().__init__()
        self.layers = layers
        self.target_rms = target_rms

    def forward(self, fused_MZ: Tensor) -> Tensor:
        """Return soft_MD."""
        soft_MD = self.layers(fused_MZ)
        if self.target_rms is None:
            return soft_MD
        soft_MD = soft_MD.to(fused_MZ.dtype)  # autocast's products are shorter
        return soft_MD * (self.target_rms * torch.rsqrt(soft_MD.square().mean(-1, keepdim=True) + 1e-12))


def _linear(config: ProjectorConfig, fused_width: int, llm_width: int) -> nn.Module:
    return nn.Linear(fused_width, llm_width)


def _mlp(config: ProjectorConfig, fused_width: int, llm_width: int) -> nn.Module:
    hidden = config.hidden_width or llm_width
    return nn.Sequential(nn.Linear(fused_width, hidden), nn.GELU(), nn.Linear(hidden, llm_width))


PROJECTORS = {"linear": _linear, "mlp": _mlp}
"""Projector name in a recipe -> builder."""


def build_projector(config: ProjectorConfig, *, fused_width: int, llm_width: int, embedding_rms: float) -> Projector:
    """Build the projector that `config` names.

    Args:
        config: name and options.
        fused_width: Z, what the fusion puts out.
        llm_width: D.
        embedding_rms: root mean square of the LLM's input embeddings (`embedding_rms`), used with `match_rms`.
    """
    if config.name not in PROJECTORS:
        raise ConfigError(unknown_name("projector", config.name, PROJECTORS))
    layers = PROJECTORS[config.name](config, fused_width, llm_width)
    return Projector(layers, embedding_rms if config.match_rms else None)


def add_noise(states_MZ: Tensor, noise: float) -> Tensor:
    """Return states with Gaussian noise of `noise` times each one's own root mean square.

    A penalty on steep directions of what follows (Bishop 1995, Training with Noise is Equivalent to Tikhonov
    Regularization): a direction in which English texts differ little is then not read, and in those a text of another
    language may stand far off.
    """
    # The gradient passes through the scale too: without that, fusions learn to drown the noise in longer states.
    rms_M1 = states_MZ.square().mean(-1, keepdim=True).clamp(min=1e-30).sqrt()  # a root's slope at zero is infinite
    return states_MZ + noise * rms_M1 * torch.randn_like(states_MZ)


@torch.no_grad()
def embedding_rms(embedding: nn.Module, vocabulary_size: int, device: torch.device) -> float:
    """Return the root mean square, over the vocabulary, of what the LLM's embedding module puts out."""
    total, count = 0.0, 0
    for start in range(0, vocabulary_size, 8192):
        ids = torch.arange(start, min(start + 8192, vocabulary_size), device=device)
        rows = embedding(ids).float()
        total += rows.square().sum().item()
        count += rows.numel()
    return (total / count) ** 0.5
