"""Evaluations on disk -> which rows each run got right, language by language, rows in one order for all runs.

N rows. Rows are put together by their id, never by their place in a file.
"""

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.predictions import predictions_path, read_predictions
from layerbridge.evaluation.run_folder import EVALUATION
from layerbridge.evaluation.score import RESULTS_FILE, judge, score_language
from layerbridge.results import Method, Results

REPORT = "report"
"""Folders of this name hold what was made of results, and are not looked into."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A language's rows, ordered by id."""

    ids: tuple[str, ...]
    answers: tuple[str, ...]
    """Gold."""


@dataclass(frozen=True)
class Correctness:
    """Which rows the runs of one task got right; add one run after the other."""

    rows: dict[str, Rows] = field(default_factory=dict)
    """By language."""
    _first: dict[str, str] = field(default_factory=dict)
    """By language: the run that `rows` are of."""
    _found: dict[tuple[int, str, Method], NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, results: Results, folder: Path) -> None:
        """Read the predictions beside a run's results.

        Raises:
            DataError: predictions that are missing, damaged, of another evaluation, or count otherwise than the
                results; rows that are not those of the runs before.
        """
        for code in sorted(results.languages):
            path = predictions_path(folder, code)
            header, predictions = read_predictions(path)
            if header.provenance != results.provenance:
                raise DataError(f"{path} is of another evaluation than {folder / RESULTS_FILE}. {_AGAIN}")
            if score_language(header, predictions, where=str(path)) != results.languages[code]:
                raise DataError(f"{path} counts otherwise than {folder / RESULTS_FILE}. {_AGAIN}")
            ordered = sorted(predictions, key=lambda row: row.id)
            rows = Rows(ids=tuple(row.id for row in ordered), answers=tuple(row.answer for row in ordered))
            self._check_rows(code, rows, results.provenance.run)
            for method in results.provenance.methods:
                outcomes = (judge(row, method, header, where=str(path)) is True for row in ordered)
                self._found[id(results), code, method] = np.fromiter(outcomes, dtype=np.bool_, count=len(ordered))

    def _check_rows(self, code: str, rows: Rows, run: str) -> None:
        wanted, first = self.rows.setdefault(code, rows), self._first.setdefault(code, run)
        if rows.ids == wanted.ids:
            return
        ours, theirs = sorted(set(rows.ids) - set(wanted.ids)), sorted(set(wanted.ids) - set(rows.ids))
        raise DataError(
            f"Runs cannot be compared row by row: of language {code!r}, {run} has {len(rows.ids)} rows, {len(ours)} of "
            f"them not in {first}{_example(ours)}, and {first} has {len(wanted.ids)}, {len(theirs)} of them not in "
            f"{run}{_example(theirs)}. Evaluate both on the same data."
        )

    def of(self, runs: Sequence[Results], code: str, method: Method) -> NDArray[np.bool_]:
        """Return `correct_KN`: a row for each of these runs."""
        return np.stack([self._found[id(results), code, method] for results in runs])

    def cluster(self, code: str) -> Hashable:
        """Return what is equal of two languages if their rows have the same ids and gold answers: translations."""
        return self.rows[code]


_AGAIN = "Write the results again with `layerbridge evaluate RUN --rescore`."


def _example(ids: Sequence[str]) -> str:
    return f" (such as {ids[0]!r})" if ids else ""


def find_evaluations(paths: Iterable[str | Path]) -> list[Path]:
    """Return the results.json files meant by `paths`, each once.

    Args:
        paths: Files, evaluation folders, run folders, or folders that hold runs at any depth. Hidden folders, and
            those called `report`, are left out.

    Raises:
        ConfigError: no path given, or one that is not there.
        DataError: a folder without results.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"No run, study, evaluation folder or results.json at {path}.")
        files = sorted(_results_below(path)) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path} has no results, at any depth. `layerbridge evaluate RUN` makes them.")
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise ConfigError("There are no results to analyse. Give at least one run.")
    return list(found.values())


def _results_below(folder: Path) -> Iterator[Path]:
    if (folder / RESULTS_FILE).is_file():
        yield folder / RESULTS_FILE
        return
    for parent, children, files in os.walk(folder):
        children[:] = [name for name in children if name[0] != "." and name != REPORT]
        if RESULTS_FILE in files and Path(parent).resolve().parent.name == EVALUATION:
            children.clear()
            yield Path(parent) / RESULTS_FILE
