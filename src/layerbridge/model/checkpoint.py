"""Checkpoints: exactly what trained, and on which bases.

`bridge.safetensors` is the checkpoint: the trained tensors, and in its header the config, both bases' identities and
what the bridge was trained on. It is written beside its place and moved there in one step, so a kill or a full disk
leaves the previous checkpoint whole. `config.json` (the header, for people) and `README.md` (the model card) are copies
that loading does not read.
"""

import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerbridge import __version__
from layerbridge.atomic import replace_file, replace_text
from layerbridge.config import EMBEDDED, BridgeConfig, build_config
from layerbridge.errors import CheckpointError, ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.model.card import model_card
from layerbridge.model.fingerprint import tensors_fingerprint

FORMAT = "layerbridge"
FORMAT_VERSION = 1
TENSORS = "bridge.safetensors"
CONFIG = "config.json"
CARD = "README.md"


def save_bridge(bridge: Bridge, folder: str | Path, *, results: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        bridge: its trained tensors are written, nothing of the frozen bases.
        folder: made if need be; a checkpoint in it is replaced in one step.
        results: accuracy by language, for the model card.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there before stays.
    """
    folder = Path(folder)
    header = _header(bridge)
    metadata = {"format": FORMAT, "layerbridge": json.dumps(header)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / TENSORS, lambda path: save_file(bridge.trained_state(), path, metadata=metadata))
        replace_text(folder / CONFIG, json.dumps(header, indent=2) + "\n")
        replace_text(folder / CARD, model_card(bridge, results))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Could not write the checkpoint to {folder}: {error}. A checkpoint that was there before is untouched; "
            "free some space, or choose another folder."
        ) from error
    return folder


def load_bridge(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    like: Bridge | None = None,
    llm_elsewhere: bool = False,
) -> Bridge:
    """Load a bridge on its two bases: every trained tensor, strictly.

    Args:
        path: a checkpoint folder, a run folder, a hub name, or `embedded`: the bridge in the package.
        device: for everything; by default the first GPU if there is one, else the CPU.
        encoder: where the encoder is now, if not where it was in training.
        llm: where the LLM is now, if not where it was in training.
        revision: of a hub name.
        trust_remote_code: let the bases run code of their own; a checkpoint cannot ask for it.
        like: an earlier bridge on the same device, whose frozen bases are taken where they are the same.
        llm_elsewhere: load of the LLM its tokenizer and input embedding alone, as of one that runs elsewhere. Its
            weights are compared as far as its files allow; a warning says where they do not.

    Raises:
        CheckpointError: damaged, foreign, or for other bases.
        ModelError: a base that cannot be loaded.
    """
    folder = find_checkpoint(path, revision)
    header = read_header(folder)
    state = read_tensors(folder / TENSORS)
    found = tensors_fingerprint(state)
    if found != header["tensors_sha256"]:
        raise CheckpointError(
            f"{folder / TENSORS} holds other values than were saved (sha256 {found[:16]}, saved "
            f"{header['tensors_sha256'][:16]}). It is damaged; copy it again."
        )
    config = _config(header, folder, encoder=encoder, llm=llm, trust_remote_code=trust_remote_code)
    bridge = Bridge.build(config, device=device, like=like, llm_elsewhere=llm_elsewhere)
    _check_bases(header["bases"], bridge.bases, folder)
    load_trained(bridge, state, where=str(folder))
    bridge.trained_on = header.get("trained_on")
    return bridge


def read_header(folder: Path) -> dict[str, Any]:
    """Return config, bases and origin of a checkpoint, without loading a model."""
    path = Path(folder) / TENSORS
    with _open(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or "layerbridge" not in metadata:
        found = metadata.get("format", "none")
        raise CheckpointError(
            f"{path} is a safetensors file of format {found!r}, not a layerbridge checkpoint. "
            "A checkpoint of the paper's code is taken in by `import_published`."
        )
    try:
        header: dict[str, Any] = json.loads(metadata["layerbridge"])
    except ValueError as error:
        raise CheckpointError(f"{path} has a header that is not JSON: {error}. It is damaged.") from None
    missing = sorted({"format_version", "config", "bases", "tensors_sha256"} - header.keys())
    if missing:
        raise CheckpointError(f"{path} has a header without {', '.join(missing)}. It is damaged.")
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format_version')}; this layerbridge ({__version__}) reads "
            f"format {FORMAT_VERSION}. Use the version that wrote it: {header.get('layerbridge_version')}."
        )
    return header


def checkpoint_fingerprint(path: str | Path) -> str:
    """Return `Bridge.fingerprint` of the bridge that a checkpoint holds, without loading a model."""
    header = read_header(find_checkpoint(path))
    return str(header.get("fingerprint") or header["tensors_sha256"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_trained(bridge: Bridge, state: Mapping[str, Tensor], *, where: str) -> None:
    """Copy trained tensors into a bridge; names and shapes must be exactly those that train.

    Raises:
        CheckpointError: missing or unexpected tensors, or another shape.
    """
    wanted = bridge.trained_parameters()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not hold the tensors that this bridge trains. Missing: {_some(missing)}. "
            f"Unexpected: {_some(extra)}. It belongs to another fusion, projector or set of adapters."
        )
    for name, parameter in wanted.items():
        if parameter.shape != state[name].shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {tuple(state[name].shape)}, wanted {tuple(parameter.shape)}. "
                "The bases have other widths or layers."
            )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def push_to_hub(
    bridge: Bridge,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    results: Mapping[str, Any] | None = None,
) -> str:
    """Put a checkpoint with its model card on the Hugging Face hub and return its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_bridge(bridge, folder, results=results)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload bridge",
            allow_patterns=[TENSORS, CONFIG, CARD],
        )
    return str(address)


# ---------------------------------------------------------------------------------------------------------------------


def _header(bridge: Bridge) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "layerbridge_version": __version__,
        "config": bridge.config.model_dump(mode="json"),
        "bases": bridge.bases,
        "trained_on": bridge.trained_on,
        "fingerprint": bridge.fingerprint(),
        "tensors_sha256": tensors_fingerprint(bridge.trained_state()),
    }


def _config(
    header: Mapping[str, Any], folder: Path, *, encoder: str | None, llm: str | None, trust_remote_code: bool
) -> BridgeConfig:
    data = json.loads(json.dumps(header["config"]))
    for role, moved in (("encoder", encoder), ("llm", llm)):
        data[role]["trust_remote_code"] = trust_remote_code
        data[role]["revision"] = data[role]["revision"] or header["bases"][role]["revision"]
        if moved is not None:
            data[role] |= {"name": moved, "revision": None}
    try:
        return build_config(BridgeConfig, data, where=str(folder / TENSORS))
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint's config is not one that this version knows. {error}") from None


def _check_bases(saved: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    for role in ("encoder", "llm"):
        for kind, what in (("fingerprint", "weights"), ("tokenizer_fingerprint", "tokenizer")):
            if loaded[role][kind] is None:
                warnings.warn(
                    f"Whether the {role} {loaded[role]['name']!r} has the weights that {folder} was trained on was not "
                    "checked: its files are not all on this machine, or hold them in another form.",
                    stacklevel=3,
                )
            elif saved[role][kind] != loaded[role][kind]:
                raise CheckpointError(
                    f"{folder} was trained on another {role}: its {what} had fingerprint {saved[role][kind]} "
                    f"({saved[role]['name']}), those of {loaded[role]['name']!r} have {loaded[role][kind]}. "
                    f"Load it with {role}= the base it was trained on."
                )


def find_checkpoint(path: str | Path, revision: str | None = None) -> Path:
    """Return the checkpoint folder of a checkpoint folder, a run folder or a hub name, or of `embedded`.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(str(resources.files("layerbridge") / EMBEDDED / "bridge")) if path == EMBEDDED else Path(path)
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / TENSORS).is_file():
            return candidate
    first = str(path).partition("/")[0]
    is_hub_name = isinstance(path, str) and path.count("/") == 1 and first not in (".", "..", "~", "runs", "")
    is_hub_name = is_hub_name and not Path(first).exists()
    if folder.exists() or not is_hub_name:
        raise CheckpointError(
            f"No checkpoint at {path}: wanted {TENSORS} there or in its folder `checkpoint`. "
            "Train one with `layerbridge train`."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=[TENSORS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"No folder {path}, and the hub gave none: {error}") from error


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path.parent}: wanted the file {path.name}.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is cut off or not a safetensors file: {error}. "
            "Copy it again, or use an earlier checkpoint."
        ) from error


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
