"""What a run shows and writes while it trains: a progress bar, and metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from layerbridge.atomic import replace_text


class Bar(ProgressCallback):
    """The Trainer's progress bar, with the latest loss and dev score at its end instead of a line a log."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember the latest figures."""
        shown = {"loss": "loss", "eval_accuracy": "dev accuracy", "eval_loss": "dev loss"}
        self.latest |= {name: f"{logs[key]:.3f}" for key, name in shown.items() if key in (logs or {})}
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.set_postfix(self.latest, refresh=False)


class MetricsFile(TrainerCallback):
    """Append every log to metrics.jsonl; on resume, drop rows of steps that will be done again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what will be written again."""
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= state.global_step]
            replace_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append a row."""
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut off by a kill
        return float("inf")
