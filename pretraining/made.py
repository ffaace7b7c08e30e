"""What made each stage's output, kept beside it, and writing that output whole or not at all.

`bag.npy` has `bag.npy.made.json`: the stage's plan, its seed, and the SHA-256 of everything it read. It is written
before the stage begins and the output after, so that an output that is there is always the one that the note tells of.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from layerbridge.atomic import replace_file, replace_text

CORPUS = ("rows.jsonl", "documents.jsonl", "raw")
CHAINS = (
    (
        *CORPUS,
        "encoder_tokenizer",
        "encoder_tokenizer.json",
        "lines.npz",
        "embeddings.npy",
        "bag.npy",
        "weighted.npy",
        "encoder",
    ),
    (*CORPUS, "llm_tokenizer", "llm_tokens.npz", "llm", "llm_instructed"),
)
"""Outputs of the stages in the order in which they go: when one is deleted, so are those after it."""

Made = dict[str, dict]
"""What decides a stage's output: `plan` (its settings, the seed too) and `inputs` (name -> SHA-256)."""


def is_made(stage: str, out: Path, made: Made, *, last: Path | None = None) -> bool:
    """Whether a stage's output is there; if it is not, notes what it is going to be made of.

    Args:
        stage: what the error calls it.
        out: file or folder of the output.
        made: of what it would be made now.
        last: the file that is written last, without which the output is not finished; `out` itself by default.

    Raises:
        ValueError: the output that is there was made of something else, or nobody knows of what.
    """
    note = out.with_name(f"{out.name}.made.json")
    now = json.loads(json.dumps(made))
    if not (last or out).exists():
        replace_text(note, json.dumps(now, indent=1, sort_keys=True))
        return False
    if not note.exists():
        raise ValueError(f"{stage}: {out} has no {note.name} that says what made it. {_advice(out)}")
    differences = list(_differences(json.loads(note.read_text(encoding="utf-8")), now))
    if differences:
        raise ValueError(f"{stage}: {out} was made otherwise: {'; '.join(differences)}. {_advice(out)}")
    return True


def _differences(there: dict, now: dict, name: str = "") -> Iterable[str]:
    for key in sorted({*there, *now}):
        one, other = there.get(key), now.get(key)
        path = f"{name}.{key}".lstrip(".")
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, path)
        elif one != other:
            yield f"{path} was {json.dumps(one)}, now {json.dumps(other)}"


def _advice(out: Path) -> str:
    later = [name for chain in CHAINS if out.name in chain for name in chain[chain.index(out.name) + 1 :]]
    found = [name for name in dict.fromkeys(later) if (out.parent / name).exists()]
    after = f" and what goes with it ({', '.join(found)})" if found else ""
    return f"Delete {out.name}{after}, or take another --work."


def of_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of the types, shapes and values of some arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def of_files(*paths: Path) -> str:
    """SHA-256 of the names and contents of some files."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def of_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a fast tokenizer does to a text, without the padding that its last call asked for."""
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    return of_text(json.dumps({**core, "padding": None, "truncation": None}))


def save_array(path: Path, array: np.ndarray) -> None:
    """`np.save`, in one step."""
    replace_file(path, lambda partial: _write(partial, lambda file: np.save(file, array)))


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """`np.savez`, in one step."""
    replace_file(path, lambda partial: _write(partial, lambda file: np.savez(file, **arrays)))


def _write(partial: Path, save: Callable) -> None:
    with partial.open("wb") as file:  # numpy would add a suffix to a path
        save(file)


def save_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Let `save` fill a new folder and put it in the place of `folder`, an unfinished one included."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
