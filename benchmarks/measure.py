"""What every measurement here shares: taking turns, medians, peak memory, the machine, and the JSON that comes out.

Only ratios within one run count: contestants take turns, so that a slow moment of the machine hits all of them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils.logging import disable_progress_bar

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Parser(argparse.ArgumentParser):
    reads_texts = True

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        found = super().parse_args(*args, **kwargs)
        if self.reads_texts and found.data is None:
            self.error("no texts to measure with: give --data FOLDER or set LAYERBRIDGE_DATA (see --help)")
        if self.reads_texts and not (found.data / "xnli").is_dir():
            self.error(f"--data {found.data}: there is no folder xnli with files dev-LANG.tsv in it")
        return found


def parser(doc: str | None, *, reads_texts: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that every measurement has; models load without bars from here on.

    Args:
        doc: what `--help` says.
        reads_texts: no data folder is then an error.
    """
    disable_progress_bar()
    made = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.reads_texts = reads_texts
    made.add_argument("--out", type=Path, help="write the JSON here too")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="smallest sizes: shows that it runs, measures nothing")
    made.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("LAYERBRIDGE_DATA"),
        help="folder with xnli/dev-LANG.tsv; by default $LAYERBRIDGE_DATA",
    )
    made.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where models made for it are kept")
    return made


def seconds(contestant: Callable[[], object]) -> float:
    """Return how long one call takes; on a GPU, until its work is done."""
    _wait()
    start = time.perf_counter()
    contestant()
    _wait()
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Callable[[], object]], *, repetitions: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each call, the contestants taking turns; `warm_up` rounds are not counted."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-warm_up, repetitions):
        for name, contestant in contestants.items():
            spent = seconds(contestant)
            if turn >= 0:
                found[name].append(spent)
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Return median, fastest and slowest of some seconds."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def peak_memory(run: Callable[[], object]) -> int:
    """Return the bytes that a call holds at its peak above what is held before it, as torch's allocator counts."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def check(
    name: str, seen: float, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, str | float | bool]:
    """Return one line of a claim's verdict, for the list `checks` of a report: what was wanted, seen, and if it holds.

    Args:
        name: what was measured, in words.
        seen: the figure of this run.
        at_least: the claim holds from here on up; or
        at_most: from here on down. Exactly one of the two.
    """
    assert (at_least is None) != (at_most is None), "a check has one limit"
    if at_least is not None:
        return {"name": name, "wanted": f">= {at_least:g}", "seen": seen, "holds": seen >= at_least}
    assert at_most is not None
    return {"name": name, "wanted": f"<= {at_most:g}", "seen": seen, "holds": seen <= at_most}


def machine(*, threads: int | None = None, device: torch.device = DEVICE) -> dict[str, Any]:
    """Return what the figures were measured on.

    Args:
        threads: of each process that worked, where that was another; by default this one's.
        device: where the work was done.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def report(
    claim: str,
    found: Mapping[str, Any],
    arguments: argparse.Namespace,
    *,
    threads: int | None = None,
    device: torch.device = DEVICE,
) -> None:
    """Print a measurement as JSON, and write it where `--out` says; `threads` and `device` as for `machine`."""
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    options = {key: value for key, value in shown.items() if key not in ("out", "data", "work")}
    row = {"claim": claim, **found, "options": options, "machine": machine(threads=threads, device=device)}
    text = json.dumps(row, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _processor() -> str:
    """Return the processor's model name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
