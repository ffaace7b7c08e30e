"""Where a training stands: what it needs to go on after a kill and end bit for bit where an undisturbed one does.

Batches are not stored: where drawing those that are done once more takes seconds, they are drawn again from the seed;
where it takes long, `record` has the state of what draws them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretraining.optimiser import MasterOptimiser, PlainState

GENERATOR = "generator"


def training_device() -> torch.device:
    """Where trainings run: on the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Progress:
    """The resumable state of one training, in one file that is replaced whole.

    Args:
        path: of the file; it is removed once the training is over (`finish`).
        every: steps between two writes.
        plan: whatever decides the training's result; a file of another plan is not gone on from.
    """

    def __init__(self, path: Path, *, every: int, plan: dict) -> None:
        self.path, self.every = path, every
        self.plan = json.dumps(plan, sort_keys=True)

    def load(
        self, optimiser: MasterOptimiser | PlainState, generator: torch.Generator | None = None
    ) -> tuple[int, dict]:
        """Put the optimiser, its model and the generator where they were.

        Returns:
            The steps that are done (0: nothing to go on from), and what `save` was given as `record`.

        Raises:
            ValueError: the file is of another plan.
        """
        if not self.path.exists():
            return 0, {}
        with safe_open(self.path, "pt") as file:
            header = json.loads(file.metadata()["header"])
            if header["plan"] != self.plan:
                raise ValueError(f"{self.path} is of another plan: {header['plan']}; this is {self.plan}. Delete it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if generator is not None:
            generator.set_state(tensors.pop(GENERATOR))
        optimiser.load_tensors(tensors, header["step"])
        return header["step"], header["record"]

    def save(
        self,
        step: int,
        optimiser: MasterOptimiser | PlainState,
        record: dict,
        generator: torch.Generator | None = None,
    ) -> None:
        """Write the file, if `step` is one of those to write at."""
        if step % self.every:
            return
        tensors: dict[str, Tensor] = optimiser.tensors()
        if generator is not None:
            tensors[GENERATOR] = generator.get_state()
        header = json.dumps({"plan": self.plan, "step": step, "record": record})
        partial = self.path.with_suffix(".partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, {"header": header})
        partial.replace(self.path)

    def finish(self) -> None:
        """Remove the file: the training's result is written."""
        self.path.unlink(missing_ok=True)
