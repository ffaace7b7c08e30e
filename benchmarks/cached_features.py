"""The second epoch with kept features: no encoder time, and the losses of a run that keeps none.

Four trainings from the same start on the same batches of real XNLI rows take turns, an epoch each: one whose encoder
reads every text whenever it comes, and one for each precision in which states are kept. What is timed is `Bridge.loss`,
backward, clip and fused AdamW; the encoder's share by hooks on the encoder itself. Dropout is off.

    python -m benchmarks.cached_features
    python -m benchmarks.cached_features --width 1024 --epochs 3

Example row (two busy cores, so no figure to quote):

    {"features": "int8", "encoder_seconds": 0.0, "encoder_passes": 0, "max_loss_difference": 0.00039,
     "relative_rms_error": 0.0059, "bytes_per_token": 4224}
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.pair import build_pair, xnli_rows
from layerbridge.config import BridgeConfig, TrainingConfig, TransformerSoftmax
from layerbridge.data.example import Example
from layerbridge.model.bridge import Bridge
from layerbridge.model.precision import PRECISIONS
from layerbridge.model.processor import BridgeInputs
from layerbridge.training.features import describe_features, keep_features, open_store
from layerbridge.training.length_groups import RandomOrder
from layerbridge.training.token_rows import TokenRows, collate

UNCACHED = "uncached"
TOLERANCES = {"encoder": 1e-4, "bfloat16": 1e-3, "int8": 5e-3}
"""Precision -> how far a step's loss may be from that of the run without a cache."""


class EncoderClock:
    """Passes and seconds of an encoder, by hooks on it."""

    def __init__(self, encoder: nn.Module) -> None:
        self.passes = 0
        self.seconds = 0.0
        self._began = 0.0
        encoder.register_forward_pre_hook(self._begin)
        encoder.register_forward_hook(self._end, always_call=True)

    def time(self, work: Callable[[], object]) -> dict[str, float]:
        """Return what some work takes, and the encoder's part of it."""
        passes, spent = self.passes, self.seconds
        seconds = measure.seconds(work)
        return {
            "encoder_passes": self.passes - passes,
            "encoder_seconds": self.seconds - spent,
            "seconds": seconds,
        }

    def _begin(self, *_: Any) -> None:
        self.passes += 1
        self._began = _now()

    def _end(self, *_: Any) -> None:
        self.seconds += _now() - self._began


def _now() -> float:
    if measure.DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Training:
    """One contestant: a bridge of its own on the shared frozen models."""

    def __init__(self, bridge: Bridge, rows: TokenRows, *, batch_size: int, seed: int) -> None:
        self.bridge = bridge.train()
        self.rows = rows
        self.order = RandomOrder(len(rows), seed=seed)
        self.batch_size = batch_size
        self.parameters = list(bridge.trained_parameters().values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=3e-5, betas=(0.8, 0.999), weight_decay=3e-7, fused=True)
        self.losses: list[float] = []

    def epoch(self, number: int) -> None:
        """Learn from every row once."""
        self.order.set_epoch(number)
        order = list(self.order)
        losses = []
        for start in range(0, len(order), self.batch_size):
            batch = [self.rows[row] for row in order[start : start + self.batch_size]]
            inputs = BridgeInputs(**collate(batch, self.bridge.processor)).to(measure.DEVICE)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.bridge.loss(inputs)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            losses.append(loss.detach())
        self.losses += torch.stack(losses).tolist()


def compare(
    models: tuple[Path, Path], examples: Sequence[Example], *, batch_size: int, epochs: int, dtype: str, seed: int
) -> list[dict[str, Any]]:
    """Return a row for each contestant: its epochs, its features, and how far its losses are from the first's."""
    config = BridgeConfig(
        encoder={"name": str(models[0]), "dtype": dtype},
        llm={"name": str(models[1]), "dtype": dtype},
        fusion=TransformerSoftmax(dropout=0.0),
    )
    first = Bridge.build(config, device=measure.DEVICE, seed=seed)
    rows = TokenRows(examples, first.processor, TrainingConfig())
    clock = EncoderClock(first.encoder.model)
    folder = Path(tempfile.mkdtemp(prefix="features-"))
    try:
        contestants = {UNCACHED: Training(first, rows, batch_size=batch_size, seed=seed)}
        filled: dict[str, dict[str, float]] = {}
        for precision in PRECISIONS:
            bridge = Bridge.build(config, device=measure.DEVICE, seed=seed, like=first)
            bridge.features = open_store(bridge, folder, precision)
            fill = partial(keep_features, bridge.features, [rows], max_bytes=None, progress=False)
            filled[precision] = clock.time(fill)
            contestants[precision] = Training(bridge, rows, batch_size=batch_size, seed=seed)
        timed: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for number in range(epochs):
            for name, one in contestants.items():
                timed[name].append(clock.time(partial(one.epoch, number)))
        return [
            _row(name, one, contestants[UNCACHED], timed[name], filled.get(name)) for name, one in contestants.items()
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(
    name: str, one: Training, wanted: Training, epochs: list[dict[str, float]], filled: dict[str, float] | None
) -> dict[str, Any]:
    differences = [abs(a - b) for a, b in zip(one.losses, wanted.losses, strict=True)]
    store = one.bridge.features
    return {
        "features": name,
        "steps": len(one.losses),
        "first_loss": one.losses[0],
        "last_loss": one.losses[-1],
        "max_loss_difference": max(differences),
        "bytes_per_token": None if store is None else store.bytes_per_token,
        "stated": describe_features(store, [one.rows], 0),
        "encoding_beforehand": filled,
        "epochs": epochs,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--width", type=int, default=512, help="of encoder and LLM")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2, help="at least 2: the second is what is looked at")
    parser.add_argument("--dtype", default="float32", help="of the frozen models")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error(f"--epochs {args.epochs}: at least 2, for the second is what is looked at")
    layers = 8
    if args.quick:
        args.width, args.rows, layers = 64, 16, 2
    examples = [
        Example(id=str(number), language="en", text=row.text, answer=row.answer)
        for number, row in enumerate(xnli_rows(args.data, seed=args.seed)[: args.rows])
    ]
    models = build_pair(args.work, args.data, width=args.width, layers=layers)
    found = compare(models, examples, batch_size=args.batch_size, epochs=args.epochs, dtype=args.dtype, seed=args.seed)

    checks = []
    for row in found[1:]:
        name, second = row["features"], row["epochs"][1]
        tolerance = TOLERANCES[name]
        checks += [
            measure.check(f"{name}: encoder passes in the second epoch", second["encoder_passes"], at_most=0),
            measure.check(f"{name}: encoder seconds in the second epoch", second["encoder_seconds"], at_most=0),
            measure.check(f"{name}: largest difference of a loss", row["max_loss_difference"], at_most=tolerance),
        ]
    table = [
        {
            "features": row["features"],
            "encoder_seconds": round(row["epochs"][1]["encoder_seconds"], 2),
            "encoder_passes": row["epochs"][1]["encoder_passes"],
            "max_loss_difference": row["max_loss_difference"],
            "relative_rms_error": None if row["stated"] is None else row["stated"]["relative_rms_error"],
            "bytes_per_token": row["bytes_per_token"],
        }
        for row in found
    ]
    measure.report(
        "with kept features the second epoch spends nothing on the encoder, and its losses are the same",
        {"runs": found, "tables": {"Second epoch, features kept": table}, "checks": checks},
        args,
    )


if __name__ == "__main__":
    main()
