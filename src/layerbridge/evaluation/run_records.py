"""What a report shows of a run beside its answers: learning curve, layer weights, origin. From the run's own files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from layerbridge.analysis import WEIGHTS_FILE, LayerWeights, LearningCurve, Origin, Point, read_weights
from layerbridge.errors import DataError
from layerbridge.evaluation.run_folder import EVALUATION
from layerbridge.results import Results

MAX_SHOWN = 4
"""Jobs that a note names."""


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """One evaluation, and the run folder that it lies in, if it does."""

    results: Results
    folder: Path
    """Of the evaluation: holds results.json."""

    @cached_property
    def run_folder(self) -> Path | None:
        """The folder that training wrote; None: the evaluation lies elsewhere."""
        folder = self.folder.resolve()
        inside = folder.parent.name == EVALUATION and (folder.parent.parent / "run.json").is_file()
        return folder.parent.parent if inside else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json; empty without a run folder."""
        return self._read("run.json")

    def weights(self) -> LayerWeights | None:
        """Return the layer weights beside the results, if they are there."""
        path = self.folder / WEIGHTS_FILE
        return read_weights(path) if path.is_file() else None

    def curve(self, set_up: str) -> LearningCurve | None:
        """Return how training went; None: no run folder, or nothing was trained."""
        path = None if self.run_folder is None else self.run_folder / "metrics.jsonl"
        if path is None or not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [_object(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
        origin = self.results.provenance
        return LearningCurve(
            task=origin.task,
            set_up=set_up,
            run=origin.run,
            seed=origin.seed,
            train_loss=_points(rows, "loss"),
            dev_accuracy=_points(rows, "eval_accuracy"),
            selected_step=self.record.get("selected_step"),
        )

    def origin(self, set_up: str) -> Origin:
        """Return where the run's numbers came from."""
        origin = self.results.provenance
        languages = self.results.languages
        environment = self._read("environment.json")
        cores = environment.get("cpu_count")
        machine = [str(environment["device"])] if environment.get("device") else []
        machine += [f"{cores} CPU cores"] if cores else []
        return Origin(
            task=origin.task,
            set_up=set_up,
            run=origin.run,
            seed=origin.seed,
            checkpoint_sha256=origin.checkpoint_sha256,
            config_sha256=origin.config_sha256,
            data_sha256={code: score.data_sha256 for code, score in sorted(languages.items())},
            data_source=tuple(sorted({score.data_source for score in languages.values()})),
            **{key: self.record.get(key) for key in _COPIED},
            encoder=self._base("encoder"),
            llm=self._base("llm"),
            versions=origin.versions,
            machine=", ".join(machine) or None,
        )

    def _base(self, side: str) -> str | None:
        base = self.results.provenance.bases.get(side)
        if base is None:
            return None
        return base.name if base.revision is None else f"{base.name}@{base.revision}"

    def _read(self, name: str) -> dict[str, Any]:
        path = None if self.run_folder is None else self.run_folder / name
        return _object(path.read_text(encoding="utf-8"), str(path)) if path is not None and path.is_file() else {}


_COPIED = ("train_rows", "train_source", "train_sha256", "steps", "seconds")
"""Keys of run.json that an `Origin` has too."""


def _points(rows: Iterable[dict[str, Any]], key: str) -> tuple[Point, ...]:
    return tuple(Point(step=row["step"], value=row[key]) for row in rows if key in row)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} holds {type(found).__name__}, wanted an object.")
    return found


def notes_on_studies(paths: Iterable[Path]) -> Iterator[str]:
    """Yield what is not done yet of the studies among these folders: jobs in study.json without a job.json."""
    for path in paths:
        file = path / "study.json"
        places = _object(file.read_text(encoding="utf-8"), str(file)).get("jobs") if file.is_file() else None
        if not places:
            continue
        missing = [str(place) for place in places if not (path / str(place) / "job.json").is_file()]
        if missing:
            shown = missing if len(missing) <= MAX_SHOWN else [*missing[:MAX_SHOWN], f"{len(missing) - MAX_SHOWN} more"]
            yield f"{len(places) - len(missing)} of {len(places)} jobs are done; missing: {', '.join(shown)}."
