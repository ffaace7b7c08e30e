"""Fingerprints of frozen models and tokenizers: is this the base that the bridge was trained on?

A bridge is worthless on other base weights, and nothing fails there: the shapes fit. So a checkpoint holds both bases'
fingerprints and loading compares them.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

SAMPLES_PER_TENSOR = 1024
PROBES = (
    "The quick brown fox, 1234567890 times; isn't it?",
    "ශ්‍රී ලංකාව සහ தமிழ் மொழி, తెలుగు, বাংলা, हिन्दी, മലയാളം",
    "Habari ya asubuhi; اللغة العربية; 你好，世界。 ภาษาไทย",
    "  two  spaces\tand\nlines ",
)


def model_fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits over a model's weights.

    Of every tensor its shape and up to 1,024 evenly spaced values enter, rounded to bfloat16, without names and in
    sorted order: the print is the same in float32 and bfloat16 and after a renaming of modules, and takes seconds for
    billions of weights. Compute it before anything is trained or adapted.
    """
    storages: set[tuple[int, tuple[int, ...]]] = set()
    prints = []
    for tensor in model.state_dict().values():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() == 0 or key in storages:  # tied weights count once
            continue
        storages.add(key)
        prints.append(tensor_print(tensor))
    return join_prints(prints)


def tensor_print(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    """Return one tensor's part of `model_fingerprint`.

    Args:
        tensor: of which a thousand values are read.
        dtype: that the model would be loaded in, where the tensor is of another one.
    """
    flat = tensor.detach().flatten()
    step = -(-flat.numel() // SAMPLES_PER_TENSOR)
    sample = flat[::step]
    if sample.is_floating_point():
        sample = sample.to(dtype or sample.dtype).to(torch.bfloat16)
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + _bytes(sample)).hexdigest()


def join_prints(prints: Iterable[str]) -> str:
    """Return `model_fingerprint` from the prints of all tensors."""
    return hashlib.sha256("".join(sorted(prints)).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits over a tokenizer's vocabulary and what it makes of a few fixed texts."""
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}\t{token}\n".encode(errors="backslashreplace"))
    for probe in PROBES:
        digest.update(repr(tokenizer(probe)["input_ids"]).encode())
    return digest.hexdigest()[:16]


def tensors_fingerprint(tensors: dict[str, Tensor], extra: str = "") -> str:
    """Return the sha256 hex digest over named tensors, whole, and a text."""
    digest = hashlib.sha256(extra.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return (
        tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else _bytes(tensor[None])
    )
