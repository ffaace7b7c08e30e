"""Feature store: the frozen encoder's states on disk, so that one encoder pass serves every fusion, seed and epoch.

Shapes: B batch, L encoder layers, S source tokens, E encoder width, T texts of a shard, N tokens of a shard.

A frozen encoder in eval mode gives a text the same states every time. They are kept by the text's token ids, in
safetensors files that are mapped into memory and not read: a shard has states_NLE, lengths_T and digests_T. A shard is
written in one step, and what is encoded in one batch does not depend on what is there already: states, and with them
every later number, are the same to the bit however often the work was cut off.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerbridge.atomic import replace_file
from layerbridge.errors import ConfigError, DataError, ModelError
from layerbridge.model.encoder import FrozenEncoder

FORMAT = "layerbridge-features-1"
SHARD_BYTES = 2**28
"""A shard is closed before it grows past this."""
BATCH_TOKENS = 4096
"""Tokens of one encoder pass, padding included."""

Ids = tuple[int, ...]


class FeatureStore:
    """States of texts that were encoded before, for one encoder, one choice of layers and one precision.

    Args:
        root: the cache folder, shared by encoders; this encoder's shards lie in a folder of their own.
        encoder: whose states they are.
        fingerprint: of its weights.

    Raises:
        ConfigError: the encoder trains, so that its states change.
    """

    def __init__(self, root: str | Path, encoder: FrozenEncoder, *, fingerprint: str) -> None:
        if encoder.trains:
            raise ConfigError(
                "The encoder's biases or adapters train, so its states change with every step and cannot be kept. "
                "Turn feature caching off for this run."
            )
        self.encoder = encoder
        self.dtype = next(encoder.model.parameters()).dtype
        kind = {
            "format": FORMAT,
            "encoder": fingerprint,
            "config": _config_digest(encoder.model.config.to_dict()),
            "layers": "-".join(map(str, encoder.layer_numbers)),
            "width": str(encoder.width),
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.kind = kind
        name = hashlib.sha256("\n".join(f"{key} {value}" for key, value in kind.items()).encode()).hexdigest()[:16]
        self.root = Path(root)
        self.folder = self.root / name
        self._views: dict[bytes, Tensor] = {}
        self._open_shards: set[str] = set()

    def __len__(self) -> int:
        return len(self._views)

    @property
    def bytes_per_token(self) -> int:
        """What one token takes on disk."""
        return len(self.encoder.layer_numbers) * self.encoder.width * self.dtype.itemsize

    def plan(self, parts: Iterable[Iterable[Sequence[int]]], max_bytes: int | None = None) -> "FeaturePlan":
        """Divide texts into shards, in their order.

        Args:
            parts: of each part (such as a language's test rows) the token ids of its texts, special tokens included. A
                part begins a new shard, so its shards are the same in whatever plan it stands, unless some of its texts
                are in an earlier part too.
            max_bytes: stop before the text that would pass this; the rest is left to the encoder, every time.
        """
        limit = float("inf") if max_bytes is None else max_bytes
        shards: list[Shard] = []
        seen: set[Ids] = set()
        total = num_left_out = 0
        for part in parts:
            new = dict.fromkeys(ids for row in part if (ids := tuple(row)) not in seen)
            seen.update(new)
            for rows in self._cut(new):
                fitting = [] if num_left_out else list(rows)
                while fitting and total + self._size(fitting) > limit:
                    fitting.pop()
                num_left_out += len(rows) - len(fitting)
                if fitting:
                    shards.append(Shard(name=_shard_name(fitting), rows=tuple(fitting)))
                    total += self._size(fitting)
        return FeaturePlan(shards=tuple(shards), num_bytes=total, num_left_out=num_left_out)

    def _cut(self, rows: Iterable[Ids]) -> list[list[Ids]]:
        pieces: list[list[Ids]] = []
        size = 0
        for row in rows:
            needed = self._size([row])
            if not pieces or size + needed > SHARD_BYTES:
                pieces.append([])
                size = 0
            pieces[-1].append(row)
            size += needed
        return pieces

    def _size(self, rows: Iterable[Ids]) -> int:
        return sum(map(len, rows)) * self.bytes_per_token

    def missing(self, plan: "FeaturePlan") -> list["Shard"]:
        """Return the plan's shards that are not on disk."""
        return [shard for shard in plan.shards if not self._path(shard.name).is_file()]

    def encode(self, shard: "Shard", *, on_batch: Callable[[int], None] | None = None) -> None:
        """Encode a shard's texts and write it.

        Args:
            shard: of a plan.
            on_batch: called with the number of texts of each pass.

        Raises:
            DataError: it cannot be written.
        """
        lengths = [len(row) for row in shard.rows]
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        states_NLE = torch.empty(0)
        device = next(self.encoder.model.parameters()).device
        padding = self.encoder.model.config.pad_token_id or 0
        for batch in _batches(lengths):
            longest = max(lengths[index] for index in batch)
            ids_BS = torch.full((len(batch), longest), padding, dtype=torch.long)
            mask_BS = torch.zeros((len(batch), longest), dtype=torch.bool)
            for place, index in enumerate(batch):
                ids_BS[place, : lengths[index]] = torch.tensor(shard.rows[index])
                mask_BS[place, : lengths[index]] = True
            with torch.no_grad():
                layers = self.encoder(ids_BS.to(device), mask_BS.to(device))
            if not len(states_NLE):  # in the states' own dtype, which need not be the weights'
                shape = (starts[-1], len(self.encoder.layer_numbers), self.encoder.width)
                states_NLE = torch.empty(shape, dtype=torch.promote_types(layers[0].dtype, layers[-1].dtype))
            for place, index in enumerate(batch):
                target_SLE = states_NLE[starts[index] : starts[index + 1]]
                for number, layer_BSE in enumerate(layers):
                    target_SLE[:, number] = layer_BSE[place, : lengths[index]].to(target_SLE.dtype)
            if on_batch is not None:
                on_batch(len(batch))
        tensors = {
            "states_NLE": states_NLE,
            "lengths_T": torch.tensor(lengths, dtype=torch.int64),
            "digests_T": torch.tensor([list(_digest(row)) for row in shard.rows], dtype=torch.uint8),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob(f".{shard.name}.*.partial"):
                partial.unlink(missing_ok=True)  # of a process that was killed
            replace_file(self._path(shard.name), lambda path: save_file(tensors, path, metadata=self.kind))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"Could not keep {len(shard.rows)} texts' features in {self.folder.parent}: {error}. Free some space, "
                "lower the cache limit, or name another cache folder; the same command then goes on."
            ) from error

    def open(self, plan: "FeaturePlan") -> None:
        """Map the plan's shards into memory; those that are not there yet are passed over."""
        for shard in plan.shards:
            path = self._path(shard.name)
            if shard.name in self._open_shards or not path.is_file():
                continue
            self._map(path)
            self._open_shards.add(shard.name)
            with suppress(OSError):  # a cache that may only be read
                os.utime(path)  # `make_room` drops those that were used longest ago

    def make_room(self, plan: "FeaturePlan", max_bytes: int) -> int:
        """Delete the shards used longest ago, of any encoder, so that the plan fits in a cache of `max_bytes`.

        Returns:
            Bytes freed. Shards of the plan are never deleted.
        """
        kept = {self._path(shard.name) for shard in plan.shards}
        others = []
        for path in self.root.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another process made room
                if path not in kept:
                    others.append((path.stat(), path))
        others.sort(key=lambda item: (item[0].st_mtime, item[1].name))
        total = plan.num_bytes + sum(stat.st_size for stat, _ in others)
        freed = 0
        for stat, path in others:
            if total - freed <= max_bytes:
                break
            path.unlink(missing_ok=True)
            freed += stat.st_size
        return freed

    def layers(self, source_ids_BS: Tensor, source_mask_BS: Tensor, encoder: FrozenEncoder) -> "Sequence[Tensor]":
        """Return a batch's L layers (B, S, E); texts that are not stored go through `encoder`, one like the store's."""
        lengths = source_mask_BS.sum(dim=1).tolist()
        rows = source_ids_BS.to(device="cpu", dtype=torch.int32)
        found = [
            self._views.get(_digest_of_bytes(row_S[:length].contiguous().numpy().tobytes()))
            for row_S, length in zip(rows, lengths, strict=True)
        ]
        new = [number for number, view in enumerate(found) if view is None]
        if len(new) == len(found):
            whole: list[Tensor] = encoder(source_ids_BS, source_mask_BS)
            return whole
        if new:
            longest = max(lengths[number] for number in new)
            encoded = encoder(source_ids_BS[new, :longest], source_mask_BS[new, :longest])
            for place, number in enumerate(new):
                found[number] = torch.stack([layer_BSE[place, : lengths[number]] for layer_BSE in encoded], dim=1)
        views = [view for view in found if view is not None]
        return StoredLayers(views, width=source_ids_BS.shape[1], device=source_ids_BS.device)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _map(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                states_NLE, lengths_T = file.get_tensor("states_NLE"), file.get_tensor("lengths_T")
                digests_T = file.get_tensor("digests_T")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} holds no features that can be read: {error}. Delete it and run again.") from error
        wrong = [key for key, value in self.kind.items() if metadata.get(key) != value]
        if wrong:
            raise DataError(
                f"{path} holds features of another kind: {', '.join(f'{k} is {metadata.get(k)!r}' for k in wrong)}; "
                f"wanted {', '.join(repr(self.kind[k]) for k in wrong)}. Delete it and run again."
            )
        lengths = lengths_T.tolist()
        for digest, view_SLE in zip(digests_T.numpy(), states_NLE.split(lengths), strict=True):
            self._views.setdefault(digest.tobytes(), view_SLE)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Texts that are encoded and written together."""

    name: str
    """Follows from the texts."""
    rows: tuple[Ids, ...]


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """Which texts' states are to be on disk."""

    shards: tuple[Shard, ...]
    num_bytes: int
    num_left_out: int
    """Texts that the limit leaves out; the encoder reads them every time."""

    @property
    def num_texts(self) -> int:
        """Texts that are to be on disk."""
        return sum(len(shard.rows) for shard in self.shards)


class StoredLayers(Sequence[Tensor]):
    """A batch's L layers (B, S, E), each put together when it is first asked for: one layer reads one layer."""

    def __init__(self, views: Sequence[Tensor], *, width: int, device: torch.device) -> None:
        self.views = views
        """B tensors (S of the text, L, E)."""
        self.width = width
        self.device = device
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.views[0].shape[1]

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index if index >= 0 else len(self) + index
        if not 0 <= place < len(self):
            raise IndexError(f"layer {index} of {len(self)}")
        if place not in self._made:
            self._made[place] = self._put_together(place)
        return self._made[place]

    def _put_together(self, place: int) -> Tensor:
        first = self.views[0]
        layer_BSE = torch.zeros((len(self.views), self.width, first.shape[2]), dtype=first.dtype)
        for row, view_SLE in enumerate(self.views):
            if view_SLE.shape[0] > self.width:
                raise ModelError(f"A stored text has {view_SLE.shape[0]} tokens; the batch is {self.width} wide.")
            layer_BSE[row, : view_SLE.shape[0]] = view_SLE[:, place]
        return layer_BSE.to(self.device)


def _config_digest(config: dict[str, Any]) -> str:
    """Return a hash of what an encoder computes with, whatever it is called and wherever it lies."""
    data = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _digest(row: Sequence[int]) -> bytes:
    return _digest_of_bytes(torch.tensor(row, dtype=torch.int32).numpy().tobytes())


def _digest_of_bytes(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _shard_name(rows: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_digest(row))
    return digest.hexdigest()[:24]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Put texts of like length together, longest first, `BATCH_TOKENS` a batch."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches
