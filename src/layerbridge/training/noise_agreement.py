"""Noise agreement: layers in which an English text and the same text misspelt agree are to weigh more in the mix.

Shapes: L encoder layers, B texts of a batch, N real tokens of a batch, n texts that agreement is measured on, E encoder
width.

Ours. A layer that sees through misspellings of English may see through the surface of other languages too; no text of
them is read. Before step one every layer's agreement is measured once on training texts; its softmax is what a text's
layer weights, averaged over its tokens, are drawn toward: KL(target || mean weights).
"""

import random
import string
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from layerbridge.config import NoiseAgreementConfig
from layerbridge.data.example import Example
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.fusion import Fusion, Mixed
from layerbridge.model.processor import pad_right
from layerbridge.model.states import States
from layerbridge.training.self_distillation import adapters_off

TEXTS_A_PASS = 32
"""Texts that the encoder reads at once."""
SMALLEST = 1e-8
"""Weights below this count as this, so that a sparse mix has a finite loss."""


def add_noise(text: str, noise: float, seed: int) -> str:
    """Return a text in which some letters are dropped, doubled, swapped with the next or replaced.

    The same text and seed give the same noise, whatever else is read.

    Args:
        text: of which nothing but letters is changed.
        noise: probability of each letter to be changed, in one of the four ways.
        seed: of the choice.
    """
    draw = random.Random(f"{seed} {text}")
    made: list[str] = []
    place = 0
    while place < len(text):
        letter, place = text[place], place + 1
        if not letter.isalpha() or draw.random() >= noise:
            made.append(letter)
            continue
        can_swap = place < len(text) and text[place].isalpha()
        match draw.choice(("drop", "double", "replace", "swap") if can_swap else ("drop", "double", "replace")):
            case "double":
                made += (letter, letter)
            case "replace":
                other = draw.choice(string.ascii_lowercase)
                made.append(other.upper() if letter.isupper() else other)
            case "swap":
                made += (text[place], letter)
                place += 1
    noisy = "".join(made)
    return noisy if noisy.strip() else text


def check_texts(examples: Sequence[Example]) -> list[str]:
    """Return the different English texts of the training rows, sorted.

    Raises:
        DataError: fewer than two.
    """
    texts = sorted({example.text for example in examples if example.language == "en"})
    if len(texts) < 2:
        languages = ", ".join(sorted({example.language for example in examples})) or "none"
        raise DataError(
            f"training.noise_agreement compares English texts with each other, and the training rows have "
            f"{len(texts)} (languages: {languages}); wanted at least 2 different ones. Train on more English rows, or "
            "drop it."
        )
    return texts


def choose_texts(examples: Sequence[Example], max_texts: int, seed: int) -> list[str]:
    """Return different English texts of the training rows, drawn with a seed if there are more than `max_texts`.

    Raises:
        DataError: fewer than two.
    """
    texts = check_texts(examples)
    return texts if len(texts) <= max_texts else random.Random(seed).sample(texts, max_texts)


@torch.no_grad()
def layer_agreement(bridge: Bridge, texts: Sequence[str], *, noise: float, seed: int, max_source_tokens: int) -> Tensor:
    """Return (L,), in float32 on the CPU: how alike each layer's states of a text and of the same text misspelt are.

    That is their mean cosine, less the mean cosine of a text with other texts' misspelt versions. A text's state is the
    mean over its tokens, less the mean over all texts of both versions: without that all texts would be alike in layers
    where few directions are large.

    Args:
        bridge: whose encoder is asked, adapters off.
        texts: at least two, all different.
        noise: share of letters that are changed.
        seed: of the noise.
        max_source_tokens: encoder tokens a text; the rest is cut.
    """
    noisy = [add_noise(text, noise, seed) for text in texts]
    with adapters_off(bridge.encoder.model):
        clean_LnE, noisy_LnE = (_text_states(bridge, version, max_source_tokens) for version in (list(texts), noisy))
    centre_L1E = torch.cat([clean_LnE, noisy_LnE], dim=1).mean(dim=1, keepdim=True)
    clean_LnE, noisy_LnE = (F.normalize(states - centre_L1E, dim=-1) for states in (clean_LnE, noisy_LnE))
    cosines_Lnn = clean_LnE @ noisy_LnE.transpose(1, 2)
    same_L = cosines_Lnn.diagonal(dim1=1, dim2=2).sum(dim=1)
    count = len(texts)
    return same_L / count - (cosines_Lnn.sum(dim=(1, 2)) - same_L) / (count * (count - 1))


def _text_states(bridge: Bridge, texts: list[str], max_source_tokens: int) -> Tensor:
    """Return (L, n, E): of each layer, the mean of a text's states over its tokens."""
    processor, encoder = bridge.processor, bridge.encoder
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Texts longer than")  # the run says it once
        rows = processor.source_ids(texts, processor.source_limit(max_source_tokens))
    means_LnE = torch.zeros(len(encoder.layer_numbers), len(texts), encoder.width)
    for first in range(0, len(rows), TEXTS_A_PASS):
        ids_BS, mask_BS = pad_right(rows[first : first + TEXTS_A_PASS], processor.encoder_tokenizer.pad_token_id or 0)
        ids_BS, mask_BS = ids_BS.to(bridge.device), mask_BS.to(bridge.device)

        def put(place: int, states_BSE: Tensor, first: int = first, mask_BS: Tensor = mask_BS) -> None:
            real_BS1 = mask_BS[:, :, None].float()
            sums_BE = (states_BSE.float() * real_BS1).sum(dim=1)
            means_LnE[place, first : first + len(mask_BS)] = (sums_BE / real_BS1.sum(dim=1)).cpu()

        encoder.stream(ids_BS, mask_BS, put)
    return means_LnE


def wanted_weights(agreement_L: Tensor, temperature: float) -> Tensor:
    """Return the layer weights (L,) that the mix is drawn toward: softmax(agreement / temperature)."""
    return torch.softmax(agreement_L / temperature, dim=0)


def check_mixes(fusion: Fusion, name: str) -> None:
    """Refuse a fusion whose layer weights cannot be drawn toward anything.

    Raises:
        ConfigError: says which fusion it is.
    """
    if fusion.mixes and any(True for _ in fusion.parameters()):
        return
    raise ConfigError(
        f"training.noise_agreement draws learned layer weights toward layers, and fusion {name!r} learns none. Choose "
        "a fusion that does, such as transformer_softmax, or drop training.noise_agreement."
    )


@contextmanager
def noted_mixes(fusion: Fusion) -> Iterator[list[tuple[States, Mixed]]]:
    """Note what a fusion is given and what it makes of it, inside."""
    noted: list[tuple[States, Mixed]] = []
    mix = fusion.mix

    def noting(states: States) -> Mixed:
        mixed = mix(states)
        noted.append((states, mixed))
        return mixed

    vars(fusion)["mix"] = noting
    try:
        yield noted
    finally:
        del vars(fusion)["mix"]


def mix_divergence(states: States, weights_NL: Tensor, wanted_L: Tensor) -> Tensor:
    """Return (B,): KL(wanted || a text's layer weights, averaged over its tokens), text by text.

    Args:
        states: that say which token is of which text.
        weights_NL: of all tokens.
        wanted_L: that they are drawn toward.
    """
    texts, columns = states.shape
    text_N = states.rows_N // columns
    # Summed in place order: adding at indices is not the same from run to run on a GPU.
    sums_BL = states.pad(weights_NL.float()).sum(dim=1)
    mean_BL = sums_BL / torch.bincount(text_N, minlength=texts)[:, None]
    wanted_L = wanted_L.to(mean_BL)
    log_wanted_L = wanted_L.clamp(min=SMALLEST).log()
    return (wanted_L * (log_wanted_L - mean_BL.clamp(min=SMALLEST).log())).sum(dim=1)


def measure(
    bridge: Bridge, examples: Sequence[Example], config: NoiseAgreementConfig, *, seed: int, limit: int
) -> Tensor:
    """Return the layers' agreement (L,) on a run's training rows.

    Args:
        bridge: untrained: an encoder that trains would change it.
        examples: the training rows.
        config: noise and number of texts.
        seed: of texts and noise.
        limit: encoder tokens a text.

    Raises:
        DataError: fewer than two English texts.
    """
    texts = choose_texts(examples, config.max_texts, seed)
    return layer_agreement(bridge, texts, noise=config.noise, seed=seed, max_source_tokens=limit)
