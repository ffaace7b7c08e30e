"""Feature store: the frozen encoder's states on disk, so that one encoder pass serves every fusion, seed and epoch.

Shapes: B batch, L encoder layers, S source tokens, E encoder width, T texts of a shard, N tokens of a shard.

A frozen encoder in eval mode gives a text the same states every time. They are kept by the text's token ids, in
safetensors files that are mapped into memory and not read: a shard has states_NLE, lengths_T and digests_T. A shard is
written in one step, and what is encoded in one batch does not depend on what is there already: states, and with them
every later number, are the same to the bit however often the work was cut off.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerbridge.atomic import replace_file
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.model.feature_plan import FeaturePlan, Shard, batches_within_budget, digest, digest_of_bytes, divide
from layerbridge.model.feature_room import FORMAT, make_room
from layerbridge.model.precision import Kept, KeptError, find_precision, measure_error
from layerbridge.model.states import States
from layerbridge.model.stored_states import MixedStates, Scratch, StoredStates

LOCKS = "locks"
ERRORS = ("relative_rms_error", "worst_layer_relative_rms_error")
"""What the errors are called in a shard's metadata and in records, in the order of `KeptError`."""


class FeatureStore:
    """States of texts that were encoded before, for one encoder, one choice of layers and one precision.

    Args:
        root: the cache folder, shared by encoders; this encoder's shards lie in a folder of their own.
        encoder: whose states they are.
        fingerprint: of its weights.
        precision: how states are kept, see `layerbridge.model.precision.PRECISIONS`.

    Raises:
        ConfigError: the encoder trains, so that its states change; or no such precision.
    """

    def __init__(
        self, root: str | Path, encoder: FrozenEncoder, *, fingerprint: str, precision: str = "encoder"
    ) -> None:
        if encoder.trains:
            raise ConfigError(
                "The encoder's biases or adapters train, so its states change with every step and cannot be kept. "
                "Turn feature caching off for this run (leave out --cache), or drop encoder.lora and "
                "encoder.train_biases."
            )
        self.precision = precision
        self._how = find_precision(precision)
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
        if precision != "encoder":
            kind["precision"] = precision
        self.kind = kind
        name = hashlib.sha256("\n".join(f"{key} {value}" for key, value in kind.items()).encode()).hexdigest()[:16]
        self.root = Path(root)
        self.folder = self.root / name
        self._texts: dict[bytes, Kept] = {}
        self._open_shards: dict[str, KeptError] = {}
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, row: Sequence[int]) -> bool:
        return digest(row) in self._texts

    @property
    def bytes_per_token(self) -> int:
        """What one token takes on disk."""
        return self._how.bytes_a_token(len(self.encoder.layer_numbers), self.encoder.width, self.dtype.itemsize)

    @property
    def error(self) -> KeptError:
        """What keeping the states cost: the largest errors of any shard that is open; 0 as the encoder gave them."""
        found = [(0.0, 0.0), *self._open_shards.values()]
        return KeptError(max(overall for overall, _ in found), max(worst for _, worst in found))

    def plan(self, parts: Iterable[Iterable[Sequence[int]]], max_bytes: int | None = None) -> FeaturePlan:
        """Divide texts into shards, in their order.

        Args:
            parts: of each part (such as a language's test rows) the token ids of its texts, special tokens included. A
                part begins a new shard, so its shards are the same in whatever plan it stands, unless some of its texts
                are in an earlier part too.
            max_bytes: stop before the text that would pass this; the rest is left to the encoder, every time.
        """
        num_layers, width = len(self.encoder.layer_numbers), self.encoder.width
        overhead = self._how.bytes_a_shard(num_layers, width)
        encoder_bytes = num_layers * width * self.dtype.itemsize
        return divide(
            parts,
            max_bytes=max_bytes,
            kept_bytes=lambda rows: sum(map(len, rows)) * self.bytes_per_token + overhead,
            encoder_bytes=lambda rows: sum(map(len, rows)) * encoder_bytes,
        )

    def missing(self, plan: FeaturePlan) -> list[Shard]:
        """Return the plan's shards that are neither open nor on disk."""
        absent = [shard for shard in plan.shards if shard.name not in self._open_shards]
        return [shard for shard in absent if not self._path(shard.name).is_file()]

    def fill(
        self,
        plan: FeaturePlan,
        *,
        max_bytes: int | None = None,
        beside: Sequence[tuple["FeatureStore", FeaturePlan]] = (),
        on_texts: Callable[[int], None] | None = None,
    ) -> None:
        """Encode what is missing, together with other processes that do the same, and open all of it.

        A shard is claimed by a lock that the operating system gives back when its holder dies, and opened as soon as it
        is there: from then on it is no matter that another process makes room and deletes it.

        Args:
            plan: the same in all processes.
            max_bytes: how large the cache folder may get; what was used longest ago makes room.
            beside: other stores in the folder, and what of them is needed too.
            on_texts: called with the number of texts of each pass that this process made.

        Raises:
            DataError: a shard cannot be written or read.
        """
        try:
            if max_bytes is not None and self.missing(plan):
                self.make_room(plan, max_bytes, beside=beside)
            while left := [shard for shard in plan.shards if not self._open(shard)]:
                (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
                claimed = [self._claim(shard, on_texts) for shard in left]
                if not any(claimed):
                    time.sleep(0.5)
        except (OSError, NotImplementedError) as error:  # the second: a disk that cannot lock files
            not_open = [shard for shard in plan.shards if shard.name not in self._open_shards]
            raise self._cannot_keep(sum(len(shard.rows) for shard in not_open), error) from error

    def _claim(self, shard: Shard, on_texts: Callable[[int], None] | None) -> bool:
        """Open a shard, and encode it first if need be; return False if another process is at it."""
        lock = self.root / LOCKS / f"{self.folder.name}-{shard.name}.lock"
        try:
            with FileLock(lock, timeout=0, fallback_to_soft=False):
                if not self._open(shard):
                    self.encode(shard, on_batch=on_texts)
                    self._open(shard)
        except Timeout:
            return self._open(shard)
        return True

    def encode(self, shard: Shard, *, on_batch: Callable[[int], None] | None = None) -> None:
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
        for batch in batches_within_budget(lengths):
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
            for number, layer_BSE in enumerate(layers):
                here_BSE = layer_BSE.cpu()  # a layer at once, as many small copies from a GPU would take longer
                for place, index in enumerate(batch):
                    states_NLE[starts[index] : starts[index + 1], number] = here_BSE[place, : lengths[index]]
            if on_batch is not None:
                on_batch(len(batch))
        kept = self._how.keep(states_NLE)
        metadata = self.kind | self._stated_error(states_NLE, kept)
        tensors = kept.tensors() | {
            "lengths_T": torch.tensor(lengths, dtype=torch.int64),
            "digests_T": torch.tensor([list(digest(row)) for row in shard.rows], dtype=torch.uint8),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob(f".{shard.name}.*.partial"):
                partial.unlink(missing_ok=True)  # of a process that was killed
            replace_file(self._path(shard.name), lambda path: save_file(tensors, path, metadata=metadata))
        except (OSError, SafetensorError) as error:
            raise self._cannot_keep(len(shard.rows), error) from error

    def _cannot_keep(self, num_texts: int, error: Exception) -> DataError:
        return DataError(
            f"Could not keep {num_texts} texts' features in {self.root}: {error}. Free some space, lower the cache "
            "limit, or name another cache folder; the same command then goes on."
        )

    def _stated_error(self, states_NLE: Tensor, kept: Kept) -> dict[str, str]:
        if self.precision == "encoder":
            return {}
        error = measure_error(states_NLE, kept)
        if not math.isfinite(error.overall):
            raise DataError(
                f"The encoder's states are not all finite numbers in {self.dtype}, so they cannot be kept as "
                f"{self.precision}. Set encoder.dtype to float32 or bfloat16, or training.feature_precision=encoder."
            )
        return dict(zip(ERRORS, map(repr, error), strict=True))

    def open(self, plan: FeaturePlan) -> None:
        """Map the plan's shards into memory; those that are not there yet are passed over."""
        for shard in plan.shards:
            self._open(shard)

    def _open(self, shard: Shard) -> bool:
        """Map a shard into memory, if it is there and not open yet; return whether it is open."""
        if shard.name in self._open_shards:
            return True
        path = self._path(shard.name)
        error = self._map(path) if path.is_file() else None
        if error is None:
            return False
        self._open_shards[shard.name] = error
        with suppress(OSError):  # a cache that may only be read
            os.utime(path)  # `make_room` drops those that were used longest ago
        return True

    def make_room(
        self, plan: FeaturePlan, max_bytes: int, *, beside: Sequence[tuple["FeatureStore", FeaturePlan]] = ()
    ) -> int:
        """Delete the shards used longest ago, of any encoder, so that the plan fits in a cache of `max_bytes`.

        Args:
            plan: what is to be in the cache.
            max_bytes: of the whole folder.
            beside: other stores in the folder, and what of them is to be there too.

        Returns:
            Bytes freed. Shards of the plans are never deleted, nor is anything that is no shard.
        """
        plans = [(self, plan), *((store, other) for store, other in beside if store is not self)]
        kept = {store._path(shard.name) for store, other in plans for shard in other.shards}
        needed = sum(other.num_bytes for _, other in plans)
        return make_room(self.root, kept, num_bytes=needed, max_bytes=max_bytes)

    def states(
        self, source_ids_BS: Tensor, source_mask_BS: Tensor, encode: Callable[[Tensor, Tensor], States]
    ) -> States:
        """Return a batch's states.

        Args:
            source_ids_BS: right-padded.
            source_mask_BS: true at real tokens.
            encode: gives the states of the texts that are not stored, from their ids and mask.
        """
        texts = self._find(source_ids_BS, source_mask_BS)
        new = [row for row, text in enumerate(texts) if text is None]
        batch, columns = source_ids_BS.shape
        if len(new) == batch:
            return encode(source_ids_BS, source_mask_BS)
        stored_BS = source_mask_BS.bool()
        if new:
            stored_BS = stored_BS.clone()
            stored_BS[new] = False
        stored = StoredStates(
            [text for text in texts if text is not None],
            rows_N=stored_BS.flatten().nonzero().squeeze(1),
            shape=(batch, columns),
            scratch=self._scratch,
        )
        if not new:
            return stored
        longest = int(source_mask_BS[new].sum(dim=1).max())
        live = encode(source_ids_BS[new, :longest], source_mask_BS[new, :longest])
        rows_b = torch.tensor(new, device=live.device)
        # What `encode` saw had fewer rows and columns; its tokens' places are meant in the whole batch.
        live_n = rows_b[live.rows_N // longest] * columns + live.rows_N % longest
        return MixedStates([stored, live], rows_N=torch.cat([stored.rows_N, live_n]), shape=(batch, columns))

    def _find(self, source_ids_BS: Tensor, source_mask_BS: Tensor) -> list[Kept | None]:
        lengths = source_mask_BS.sum(dim=1).tolist()
        rows = source_ids_BS.to(device="cpu", dtype=torch.int32)
        return [
            self._texts.get(digest_of_bytes(row_S[:length].contiguous().numpy().tobytes()))
            for row_S, length in zip(rows, lengths, strict=True)
        ]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _map(self, path: Path) -> KeptError | None:
        """Make a shard's texts known and return its errors; None if another process has deleted it."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                lengths_T, digests_T = tensors.pop("lengths_T"), tensors.pop("digests_T")
                kept = Kept(**tensors)
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
            if not path.exists():
                return None
            raise DataError(f"{path} holds no features that can be read: {error}. Delete it and run again.") from error
        wrong = [key for key, value in self.kind.items() if metadata.get(key) != value]
        if wrong:
            raise DataError(
                f"{path} holds features of another kind: {', '.join(f'{k} is {metadata.get(k)!r}' for k in wrong)}; "
                f"wanted {', '.join(repr(self.kind[k]) for k in wrong)}. Delete it and run again."
            )
        for digest_1, text in zip(digests_T.numpy(), kept.split(lengths_T.tolist()), strict=True):
            self._texts.setdefault(digest_1.tobytes(), text)
        return KeptError(*(float(metadata.get(key, 0.0)) for key in ERRORS))


def _config_digest(config: dict[str, Any]) -> str:
    """Return a hash of what an encoder computes with, whatever it is called and wherever it lies."""
    data = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
