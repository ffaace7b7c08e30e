"""Two processes with one thread each against one process with one thread: the same losses, and how much faster.

Both train the same recipe (Transformer Softmax, dropout off, float32, mT5 + Llama of `benchmarks.pair`, real XNLI rows)
through `layerbridge.training.train.train`; the two are started by torchrun and talk over nccl where there are two GPUs.
With fewer, one process and two run on the CPU, and talk over gloo. They take turns, a whole run each. Examples a second
are counted from the end of the warm-up steps to the end of the last step, so that starting, reading and tokenising do
not count; losses are compared over all steps. Where other work shares the cores, two processes get more of them than
one, and the ratio says nothing; processor seconds an example, of all processes together, still say how much the sharing
adds.

    python -m benchmarks.two_processes
    python -m benchmarks.two_processes --width 1024 --batch-size 32

Example row (two cores shared with other work, so no figure to quote):

    {"examples_per_second": {"one": [15.1, ...], "two": [26.9, ...]}, "losses": {...}, "checks": [...]}
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.pair import build_pair, xnli_rows

ONE = [sys.executable, "-m"]
DEVICE = torch.device("cuda" if torch.cuda.device_count() >= 2 else "cpu")
"""One GPU would be shared by two processes, and one process has it whole: neither says what a second one is worth."""
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def write_recipe(folder: Path, arguments: argparse.Namespace) -> Path:
    """Write rows and a recipe, and return the recipe's path."""
    encoder, llm = build_pair(arguments.work, arguments.data, width=arguments.width, layers=arguments.layers)
    rows = xnli_rows(arguments.data, seed=arguments.seed)
    lines = [json.dumps({"text": row.text, "label": row.answer}) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe: dict[str, Any] = {
        "name": "two_processes",
        "encoder": str(encoder.resolve()),
        "llm": str(llm.resolve()),
        "fusion": {"name": "transformer_softmax", "dropout": 0.0},
        "task": {
            "name": "xnli_rows",
            "files": {"train": "train.jsonl"},
            "encoder_prompt": "{text}",
            "answer_column": "label",
            "answers": ["Entailment", "Neutral", "Contradiction"],
        },
        "training": {
            "batch_size": arguments.batch_size,
            "max_steps": arguments.steps,
            "eval_every": arguments.steps,
            "select": "last",
            "group_by_length": arguments.group_by_length,
            "seed": arguments.seed,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # which YAML contains
    return path


def train_and_time(recipe: Path, folder: Path) -> None:
    """Train, and write the time after each step; what each process that `run` starts does."""
    from transformers import TrainerCallback

    from layerbridge.config import load_recipe
    from layerbridge.training import train as module
    from layerbridge.training.trainer import BridgeTrainer

    moments: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments.append((time.perf_counter(), time.process_time()))

    class Timed(BridgeTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.args.logging_steps = 1
            self.add_callback(Clock())

    module.BridgeTrainer = Timed  # type: ignore[misc]
    module.train(load_recipe(recipe), folder, progress=False)
    place = folder / f"moments-{os.environ.get('RANK', '0')}.json"
    place.write_text(json.dumps(moments), encoding="utf-8")


def run(launcher: list[str], recipe: Path, folder: Path, warm_up: int) -> tuple[float, float, list[float]]:
    """Return seconds a step, processor seconds a step of all processes together, and the losses of one run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if DEVICE.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [*launcher, "benchmarks.two_processes", "--train", str(recipe), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [json.loads(path.read_text())[warm_up - 1 :] for path in sorted(folder.glob("moments-*.json"))]
    steps = len(counted[0]) - 1
    worked = sum(moments[-1][1] - moments[0][1] for moments in counted)
    return (
        (counted[0][-1][0] - counted[0][0][0]) / steps,
        worked / steps,
        [row["loss"] for row in rows if "loss" in row],
    )


def measure_both(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return examples a second of one and of two processes, taking turns, and how far apart their losses are."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    work: dict[str, list[float]] = {"one": [], "two": []}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as made:
        recipe = write_recipe(Path(made), arguments)
        for turn in range(arguments.repetitions):
            for name, launcher in (("one", ONE), ("two", TWO)):
                folder = Path(made) / f"{name}-{turn}"
                seconds, worked, losses[name] = run(launcher, recipe, folder, arguments.warm_up)
                rates[name].append(arguments.batch_size / seconds)
                work[name].append(worked / arguments.batch_size)
    ratio = statistics.median(two / one for one, two in zip(rates["one"], rates["two"], strict=True))
    apart = max(abs(a - b) for a, b in zip(losses["one"], losses["two"], strict=True))
    table = [
        {
            "processes": name,
            "examples a second": round(statistics.median(found), 2),
            "all runs": _listed(found),
            "processor seconds an example": round(statistics.median(work[name]), 4),
        }
        for name, found in rates.items()
    ]
    return {
        "device": DEVICE.type,
        "examples_per_second": rates,
        "processor_seconds_per_example": work,
        "losses": losses,
        "tables": {"One process and two, one thread each": table},
        "checks": [
            measure.check("examples a second, two processes / one", ratio, at_least=1.6),
            measure.check("largest difference of a loss", apart, at_most=1e-4),
        ],
    }


def _listed(rates: list[float]) -> str:
    return ", ".join(f"{rate:.2f}" for rate in rates)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16, help="rows of one update, over all processes")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not timed")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each")
    parser.add_argument("--group-by-length", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.width, arguments.layers, arguments.batch_size = 64, 2, 4
        arguments.steps, arguments.warm_up, arguments.repetitions = 4, 1, 1
    measure.report(
        "two processes have the losses of one, and at least 1.6 times its examples a second",
        measure_both(arguments),
        arguments,
        threads=1,
        device=DEVICE,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:  # one of the processes that `run` starts
        train_and_time(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
