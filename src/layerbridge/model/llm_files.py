"""An LLM that runs elsewhere: of its files only the input embedding is loaded, and the rest is looked at.

Who hands embeddings to an LLM in another process needs its tokenizer and its input embedding module, and no layer. The
LLM's class is built without storage, the embedding's tensor alone is read from the safetensors files, and whatever
scale the class's own embedding module applies (Gemma's) stays. The fingerprint is taken from the files: of each tensor
a thousand values, read where they lie.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from layerbridge.errors import ModelError
from layerbridge.model.fingerprint import join_prints, tensor_print


class LLMFiles:
    """Where each tensor of an LLM lies.

    Args:
        path: a folder or a hub name.
        hub: revision and the like.

    Raises:
        ModelError: no safetensors files.
    """

    def __init__(self, path: str, hub: Mapping[str, Any]) -> None:
        self.path = path
        self._hub = {name: value for name, value in hub.items() if name == "revision"}
        self._index = self._find(SAFE_WEIGHTS_INDEX_NAME)
        whole = None if self._index else self._find(SAFE_WEIGHTS_NAME)
        if self._index is None and whole is None:
            raise ModelError(
                f"LLM {path!r} has no safetensors files, of which the input embedding alone could be read. Save it "
                "once with save_pretrained, or run it in this process."
            )
        self._whole = whole
        self.places = self._places()
        """Tensor's name -> name of its file."""

    def read(self, name: str) -> Tensor:
        """Return one tensor; its file is fetched if need be."""
        file = self._find(self.places[name], fetch=True)
        if file is None:
            raise ModelError(f"LLM {self.path!r} lacks the file {self.places[name]}, in which {name} should be.")
        with _open(file) as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]] | None:
        """Return all tensors, each mapped from its file and read where it is touched; None where files are not here.

        Nothing is fetched: an LLM that runs elsewhere may be too large for this machine.
        """
        files = {file: self._find(file) for file in sorted(set(self.places.values()))}
        if None in files.values():
            return None
        return self._mapped([file for file in files.values() if file is not None])

    def _mapped(self, files: list[Path]) -> Iterator[tuple[str, Tensor]]:
        for file in files:
            with _open(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    yield name, opened.get_tensor(name)

    def _places(self) -> dict[str, str]:
        if self._whole is not None:
            with _open(self._whole) as opened:
                return dict.fromkeys(opened.keys(), SAFE_WEIGHTS_NAME)
        try:
            index: dict[str, str] = json.loads(cast(Path, self._index).read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise ModelError(f"{self._index} of LLM {self.path!r} is no index of tensors: {error!r}.") from None
        return index

    def _find(self, file: str, *, fetch: bool | None = None) -> Path | None:
        """Return where a file is. An index or a single file is fetched; a shard only where `fetch` says so."""
        fetch = file in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME) if fetch is None else fetch
        found = cached_file(
            self.path,
            file,
            local_files_only=not fetch,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **self._hub,
        )
        return None if found is None else Path(found)


def skeleton(hf_config: Any, path: str, hub: Mapping[str, Any], files: LLMFiles, dtype: torch.dtype) -> PreTrainedModel:
    """Return the LLM's class with its input embedding loaded and nothing else.

    Raises:
        ModelError: files without the embedding, or with one of another shape.
    """
    arguments = {name: value for name, value in hub.items() if name == "trust_remote_code"}
    with init_empty_weights(include_buffers=False):  # buffers stay real: a scale of the embedding is one
        model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype, **arguments)
    embedding = model.get_input_embeddings()
    own = [name for name, _ in embedding.named_parameters()]
    if own != ["weight"]:
        raise ModelError(
            f"The input embedding of LLM {path!r} is made of {', '.join(own) or 'no tensor'}; wanted one `weight`. "
            "Run this LLM in this process."
        )
    (name,) = [name for name, module in model.named_modules() if module is embedding]
    key = _key_of(f"{name}.weight", files.places, path)
    weight = files.read(key)
    if weight.shape != embedding.weight.shape or not weight.is_floating_point():
        raise ModelError(
            f"{key} of LLM {path!r} has shape {tuple(weight.shape)} and dtype {weight.dtype}; its config.json wants "
            f"{tuple(embedding.weight.shape)}, floating point. The files do not belong together."
        )
    embedding.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    model.tie_weights()
    model.generation_config = _generation_config(path, hub, hf_config)
    model.forward = _refuse_to_run
    return cast(PreTrainedModel, model)


def files_fingerprint(model: PreTrainedModel, files: LLMFiles, dtype: torch.dtype) -> str | None:
    """Return what `model_fingerprint` returns of the whole LLM, from its files; None where they do not tell.

    They do not where some are not on this machine, or where they hold the weights in another form than the loaded
    model does (fused experts, quantised layers).

    Args:
        model: its skeleton.
        files: of the LLM.
        dtype: that it would be loaded in.
    """
    tensors = files.tensors()
    if tensors is None:
        return None
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "")
    shapes, prints = Counter[tuple[int, ...]](), []
    for name, tensor in tensors:
        # Some files hold the head beside the embedding that it is tied to; the loaded model has it once.
        if tensor.numel() == 0 or (tied and name == f"{head}.weight"):
            continue
        shapes[tuple(tensor.shape)] += 1
        prints.append(tensor_print(tensor, dtype))
    wanted = Counter(tuple(tensor.shape) for _, tensor in _kept(model))
    return join_prints(prints) if shapes == wanted else None


def _kept(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield what the model's state holds, tied tensors once."""
    names = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in names)


def _key_of(name: str, keys: Mapping[str, str], path: str) -> str:
    """Return the files' name of a parameter: its own, or the one that differs by what stands before it."""
    found = [key for key in keys if key == name] or [
        key for key in keys if key.endswith(f".{name}") or name.endswith(f".{key}")
    ]
    if len(found) != 1:
        raise ModelError(
            f"The files of LLM {path!r} hold {len(found)} tensors that could be its input embedding ({name}); wanted "
            "one. Run this LLM in this process."
        )
    return found[0]


def _generation_config(path: str, hub: Mapping[str, Any], hf_config: Any) -> GenerationConfig:
    revision = {name: value for name, value in hub.items() if name == "revision"}
    try:
        return GenerationConfig.from_pretrained(path, **revision)
    except OSError:
        return GenerationConfig.from_model_config(hf_config)


def _refuse_to_run(*_: Any, **__: Any) -> None:
    raise ModelError("This LLM runs elsewhere: only its input embedding was loaded. Load the bridge whole to ask it.")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is cut off or not a safetensors file: {error}. Copy it again.") from error
