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
    """Append every log to metrics.jsonl; on resume, drop rows of steps that will be done again.

    Args:
        path: of the file.
        stage: name of a stage before the task. Its rows say so, stand before the others, and have no `loss`, which is
            the task's.
    """

    def __init__(self, path: Path, stage: str | None = None) -> None:
        self.path = path
        self.stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what will be written again."""
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if self._stays(line, state.global_step)]
            replace_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append a row."""
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, **logs}
            if self.stage is not None:
                row = {"stage": self.stage} | {key: value for key, value in row.items() if key != "loss"}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _stays(self, line: str, step: int) -> bool:
        try:
            row = json.loads(line)
            is_before = self.stage is None and "stage" in row
            return is_before or (row.get("stage") == self.stage and float(row["step"]) <= step)
        except (ValueError, KeyError):  # cut off by a kill
            return False
