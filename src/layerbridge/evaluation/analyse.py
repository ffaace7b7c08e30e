"""Several evaluated runs -> one `Analysis`: accuracies, differences and how sure they are, by task and method.

Runs that differ in the seed alone are one set-up (`set_ups`); what is not comparable is refused
(`compare.check_comparable`). K seeds, N rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from layerbridge.analysis import (
    Accuracy,
    Analysis,
    AverageRow,
    Difference,
    LanguageRow,
    LearningCurve,
    Origin,
    SetUpWeights,
    TaskAnalysis,
)
from layerbridge.errors import ConfigError, unknown_name
from layerbridge.evaluation import compare, statistics
from layerbridge.evaluation.claims import claims_of, notes_of
from layerbridge.evaluation.correctness import find_evaluations
from layerbridge.evaluation.run_records import RunRecords, notes_on_studies
from layerbridge.evaluation.set_ups import Column, Table, pair_seeds, reference_of, tables_of
from layerbridge.languages import language
from layerbridge.results import LanguageScore, read_results

Average = Literal["average", "zero-shot average"]


def analyse(
    paths: Iterable[str | Path],
    *,
    title: str | None = None,
    reference: str | None = None,
    main: str | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
    num_resamples: int = statistics.NUM_RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Put evaluated runs together.

    Args:
        paths: Run folders, evaluation folders, results.json files, or folders that hold runs at any depth (a study).
        title: By default empty: the page makes one.
        reference: Set-up that differences are to, in every task that has it. By default the bridge `last_layer`, else
            the first of fusion last_layer, else the first set-up.
        main: Task whose claims come first; by default the first by name.
        command: What to type to get the same.
        notes: Of the whole, after what is not done yet of a study's folder.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap; the same files give the same analysis.

    Raises:
        ConfigError: nothing at a path, or a reference or main task that is not there.
        DataError: one task in several versions, splits, limits or data, bridges between other frozen models, or
            predictions that are missing, damaged, or not of the same rows; the message says which run has which.
    """
    folders = [Path(path) for path in paths]
    read = [RunRecords(results=read_results(file), folder=file.parent) for file in find_evaluations(folders)]
    # One order whatever the order of the paths; the newest of equals still comes first, see distinct_checkpoints.
    read.sort(key=lambda run: (run.results.provenance.task, run.results.provenance.run, str(run.folder)))
    tables: list[Table] = []
    for task in sorted({run.results.provenance.task for run in read}):
        tables += tables_of([run for run in read if run.results.provenance.task == task])
    chosen = [(table, reference_of(table, tables, reference)) for table in tables]
    tasks = [_analyse_table(table, base, reference, num_resamples, seed) for table, base in chosen]
    names = list(dict.fromkeys(task.task for task in tasks))
    if main is not None and main not in names:
        raise ConfigError(unknown_name("task", main, names))
    records = list(_records(tables))
    return Analysis(
        title=title or "",
        command=command,
        created=max(run.results.created for run in read),
        claims=tuple(claims_of(tasks, main)),
        tasks=tuple(tasks),
        weights=tuple(weights for weights, _, _ in records if weights is not None),
        curves=tuple(curve for _, curve, _ in records if curve is not None),
        origins=tuple(origin for _, _, origin in records),
        notes=(*notes_on_studies(folders), *notes),
    )


# ------------------------------------------------------------------------------------------------------------
# Set-ups to figures


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A set-up and the reference on one language: rows of equal seeds."""

    correct_KN: NDArray[np.bool_]
    reference_KN: NDArray[np.bool_]


def _analyse_table(
    table: Table, reference: Column | None, wanted: str | None, num_resamples: int, seed: int
) -> TaskAnalysis:
    seen = compare.seen_by_any(table.runs)
    codes = {code for run in table.runs for code in run.languages}
    ordered = sorted(codes, key=lambda code: (code not in (seen or ()), code))
    # A baseline that lacks a language must not move the bridges' averages.
    needed = [*table.bridges, *([reference] if reference is not None else [])] if table.bridges else table.columns
    common = [code for code in ordered if all(column.has([code]) for column in needed)]
    unseen = [code for code in common if seen is not None and code not in seen]
    averages: dict[Average, list[str]] = {"average": common, "zero-shot average": unseen}
    averages = {name: found for name, found in averages.items() if found}
    figures = _Figures(table, reference)
    for found in [*([code] for code in ordered), *averages.values()]:
        figures.ask(found)
    figures.answer(num_resamples, seed)
    differences = _adjust({code: figures.differences([code], is_average=False) for code in ordered}, seen)
    first = table.columns[0].runs[0]
    origin, whence = first.provenance, table.records[id(first)].origin("")
    is_bridge = origin.kind == "bridge"
    return TaskAnalysis(
        task=origin.task,
        task_version=origin.task_version,
        split=origin.split,
        limit=origin.limit,
        method=table.method,
        encoder=whence.encoder if is_bridge else None,
        llm=whence.llm if is_bridge else None,
        reference=None if reference is None else reference.record.name,
        set_ups=tuple(column.record for column in table.columns),
        languages=tuple(_language_row(code, figures, differences[code], seen) for code in ordered),
        averages=tuple(_average_row(name, found, figures) for name, found in averages.items()),
        parallel=len(ordered) > 1 and len({table.correctness.cluster(code) for code in ordered}) == 1,
        notes=tuple(dict.fromkeys(notes_of(table, reference, wanted, common, ordered))),
    )


class _Figures:
    """Everything asked about one table's languages and averages, estimated in one go."""

    def __init__(self, table: Table, reference: Column | None) -> None:
        self._table, self._reference = table, reference
        self._problems: dict[tuple[str, bool, tuple[str, ...]], list[statistics.Matrix]] = {}
        self._estimates: dict[tuple[str, bool, tuple[str, ...]], statistics.Estimate] = {}

    def ask(self, codes: Sequence[str]) -> None:
        """Want the mean over these languages, of every set-up that has them, and its difference to the reference."""
        correctness, method = self._table.correctness, self._table.method
        clusters = [correctness.cluster(code) for code in codes]
        for column in self._having(codes):
            name = column.record.name
            matrices = [correctness.of(column.runs, code, method) for code in codes]
            self._problems[name, False, tuple(codes)] = statistics.stack(matrices, clusters)
        for column, reference in self._compared(codes):
            pairs = self._pairs(column, reference, codes)
            differences = [statistics.subtract(pair.correct_KN, pair.reference_KN) for pair in pairs]
            self._problems[column.record.name, True, tuple(codes)] = statistics.stack(differences, clusters)

    def answer(self, num_resamples: int, seed: int) -> None:
        """Estimate what was asked."""
        found = statistics.bootstrap(list(self._problems.values()), num_resamples=num_resamples, seed=seed)
        self._estimates = dict(zip(self._problems, found, strict=True))

    def accuracies(self, codes: Sequence[str]) -> dict[str, Accuracy]:
        """Return set-up name -> accuracy."""
        method, found = self._table.method, {}
        for column in self._having(codes):
            key = (column.record.name, False, tuple(codes))
            estimate = statistics.with_exact_bounds(self._estimates[key], self._problems[key])
            languages = [[run.languages[code] for code in codes] for run in column.runs]
            by_seed = tuple(fmean(score.accuracy(method) for score in scores) for scores in languages)
            unreadable = fmean(score.unreadable_fraction(method) for scores in languages for score in scores)
            found[column.record.name] = Accuracy(
                mean=fmean(by_seed),
                low=max(0.0, estimate.low),
                high=min(1.0, estimate.high),
                by_seed=by_seed,
                unreadable=unreadable,
            )
        return found

    def differences(self, codes: Sequence[str], *, is_average: bool) -> dict[str, Difference]:
        """Return set-up name -> difference to the reference, not yet adjusted; exact tests are of no average."""
        found = {}
        for column, reference in self._compared(codes):
            estimate = self._estimates[column.record.name, True, tuple(codes)]
            pairs = self._pairs(column, reference, codes)
            tests = [statistics.mcnemar(pair.correct_KN, pair.reference_KN) for pair in pairs]
            found[column.record.name] = Difference(
                mean=estimate.mean,
                low=estimate.low,
                high=estimate.high,
                p_bootstrap=estimate.p,
                p_mcnemar=None if is_average else tests[0].p,
                wins=sum(test.wins for test in tests),
                losses=sum(test.losses for test in tests),
                detectable=_detectable(estimate, tests, num_rows=pairs[0].correct_KN.shape[1]),
            )
        return found

    def any_score(self, code: str) -> LanguageScore:
        """Return a language's score in some run: n and majority are the data's, and the data is one."""
        return next(run.languages[code] for run in self._table.runs if code in run.languages)

    def _having(self, codes: Sequence[str]) -> list[Column]:
        return [column for column in self._table.columns if column.has(codes)]

    def _compared(self, codes: Sequence[str]) -> list[tuple[Column, Column]]:
        """Return each set-up that has these languages beside the reference, if that has them."""
        reference = self._reference
        if reference is None or not reference.has(codes):
            return []
        return [(column, reference) for column in self._having(codes) if column is not reference]

    def _pairs(self, column: Column, reference: Column, codes: Sequence[str]) -> list[_Pair]:
        ours, theirs = pair_seeds(column.record, reference.record)
        of, method = self._table.correctness.of, self._table.method
        return [
            _Pair(
                correct_KN=of([column.runs[index] for index in ours], code, method),
                reference_KN=of([reference.runs[index] for index in theirs], code, method),
            )
            for code in codes
        ]


def _detectable(estimate: statistics.Estimate, tests: Sequence[statistics.McNemar], *, num_rows: int) -> float | None:
    """Return what the verdict's own test can show; None: the two never disagreed, or nothing varied."""
    if not any(test.wins or test.losses for test in tests) or estimate.standard_error == 0:
        return None
    if len(tests) == 1 and estimate.num_seeds == 1:
        return statistics.detectable_difference(num_rows, tests[0].discordant)
    return min(1.0, estimate.detectable)


def _adjust(
    differences: Mapping[str, dict[str, Difference]], seen: set[str] | None
) -> dict[str, dict[str, Difference]]:
    """Fill in Holm's values: over the unseen languages of each set-up, over all where none is unseen."""
    unseen = [code for code in differences if seen is not None and code not in seen] or list(differences)
    adjusted = {code: dict(found) for code, found in differences.items()}
    for name in {name for found in differences.values() for name in found}:
        codes = [code for code in unseen if name in differences[code]]
        bootstrap = statistics.holm([differences[code][name].p_bootstrap for code in codes])
        tests = [differences[code][name].p_mcnemar for code in codes]
        exact = statistics.holm([p for p in tests if p is not None])  # of a single language there always is one
        for code, p_bootstrap, p_mcnemar in zip(codes, bootstrap, exact, strict=True):
            update = {"p_bootstrap_holm": p_bootstrap, "p_mcnemar_holm": p_mcnemar}
            adjusted[code][name] = differences[code][name].model_copy(update=update)
    return adjusted


def _language_row(
    code: str, figures: _Figures, differences: dict[str, Difference], seen: set[str] | None
) -> LanguageRow:
    score = figures.any_score(code)
    try:
        known = language(code)
    except ConfigError:
        known = None
    return LanguageRow(
        code=code,
        name=known.name if known else code,
        script=known.script if known else None,
        direction="rtl" if known and known.direction == "rtl" else "ltr",
        resource=known.resource if known else None,
        seen=None if seen is None else code in seen,
        n=score.n,
        majority=score.majority_accuracy,
        accuracies=figures.accuracies([code]),
        differences=differences,
    )


def _average_row(name: Average, codes: Sequence[str], figures: _Figures) -> AverageRow:
    scores = [figures.any_score(code) for code in codes]
    return AverageRow(
        name=name,
        languages=tuple(codes),
        n=sum(score.n for score in scores),
        majority=fmean(score.majority_accuracy for score in scores),
        accuracies=figures.accuracies(codes),
        differences=figures.differences(codes, is_average=True),
    )


def _records(tables: Sequence[Table]) -> Iterator[tuple[SetUpWeights | None, LearningCurve | None, Origin]]:
    """Yield layer weights, curve and origin of every run, once a task."""
    done: set[int] = set()
    for table in tables:
        for column in table.columns:
            for run in column.runs:
                if id(run) not in done:
                    done.add(id(run))
                    records, name = table.records[id(run)], column.record.name
                    weights = records.weights()
                    drawn = None if weights is None else SetUpWeights(set_up=name, weights=weights)
                    yield drawn, records.curve(name), records.origin(name)
