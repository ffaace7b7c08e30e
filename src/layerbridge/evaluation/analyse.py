"""Several evaluated runs -> one `Analysis`: accuracies, differences and how sure they are, by task and method.

Runs that differ in the seed alone are one set-up (`compare.group_seeds`); what is not comparable is refused
(`compare.check_comparable`). K seeds, N rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from layerbridge.analysis import (
    Accuracy,
    Analysis,
    AverageRow,
    Claim,
    Difference,
    LanguageRow,
    LearningCurve,
    Origin,
    SetUp,
    SetUpWeights,
    TaskAnalysis,
)
from layerbridge.errors import ConfigError, unknown_name
from layerbridge.evaluation import compare, statistics
from layerbridge.evaluation.correctness import Correctness, find_evaluations
from layerbridge.evaluation.run_records import RunRecords
from layerbridge.languages import language
from layerbridge.results import Method, Results, read_results

FEW_SEEDS = 5
"""With fewer, a note says so."""

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
        title: By default the tasks' names.
        reference: Set-up that differences are to, in every task that has it. By default the bridge `last_layer`, else
            the first of fusion last_layer, else the first set-up.
        main: Task whose claims come first; by default the first by name.
        command: What to type to get the same.
        notes: Of the whole.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap; the same files give the same analysis.

    Raises:
        ConfigError: nothing at a path, or a reference or main task that is not there.
        DataError: one task in several versions, splits, limits or data, or predictions that are missing, damaged, or
            not of the same rows; the message says which run has which.
    """
    read = [RunRecords(results=read_results(file), folder=file.parent) for file in find_evaluations(paths)]
    # One order whatever the order of the paths; the newest of equals still comes first, see distinct_checkpoints.
    read.sort(key=lambda run: (run.results.provenance.task, run.results.provenance.run, str(run.folder)))
    tables: list[_Table] = []
    for task in sorted({run.results.provenance.task for run in read}):
        tables += _tables([run for run in read if run.results.provenance.task == task])
    chosen = [(table, _reference(table, tables, reference)) for table in tables]
    tasks = [_analyse_table(table, base, reference, num_resamples, seed) for table, base in chosen]
    names = list(dict.fromkeys(task.task for task in tasks))
    if main is not None and main not in names:
        raise ConfigError(unknown_name("task", main, names))
    records = list(_records(tables))
    return Analysis(
        title=title or ", ".join(names),
        command=command,
        created=max(run.results.created for run in read),
        claims=tuple(_claims(tasks, main)),
        tasks=tuple(tasks),
        weights=tuple(weights for weights, _, _ in records if weights is not None),
        curves=tuple(curve for _, curve, _ in records if curve is not None),
        origins=tuple(origin for _, _, origin in records),
        notes=tuple(notes),
    )


# ------------------------------------------------------------------------------------------------------------
# Runs to set-ups


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One set-up: what a report says of it, and its runs in the order of the seeds."""

    record: SetUp
    runs: tuple[Results, ...]

    def has(self, codes: Iterable[str]) -> bool:
        return all(code in run.languages for code in codes for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One task, read one way."""

    method: Method
    columns: tuple[_Column, ...]
    correctness: Correctness
    records: Mapping[int, RunRecords]
    """By identity of the results."""
    checkpoints: tuple[tuple[Results, ...], ...]

    @property
    def runs(self) -> list[Results]:
        return [run for column in self.columns for run in column.runs]


def _tables(read: Sequence[RunRecords]) -> Iterator[_Table]:
    """Yield one table a method of one task's evaluations."""
    records = {id(run.results): run for run in read}
    checkpoints = compare.distinct_checkpoints(run.results for run in read)
    given = [same[0] for same in checkpoints]
    compare.check_comparable(given)
    correctness = Correctness()
    for results in given:
        correctness.add(results, records[id(results)].folder)
    for method in get_args(Method):
        having = [results for results in given if method in results.provenance.methods]
        if having:
            yield _Table(
                method=method,
                columns=_columns(having, records),
                correctness=correctness,
                records=records,
                checkpoints=tuple(tuple(same) for same in checkpoints if method in same[0].provenance.methods),
            )


def _columns(results: Sequence[Results], records: Mapping[int, RunRecords]) -> tuple[_Column, ...]:
    groups = compare.group_seeds(results)
    columns = []
    for column, runs in zip(compare.columns_of(groups), groups, strict=True):
        origin = runs[0].provenance
        record = SetUp(
            name=column.name,
            group=_group(runs[0]),
            fusion=origin.fusion,
            layer=origin.layer,
            seeds=tuple(run.provenance.seed for run in runs),
            runs=column.runs,
            trained_parameters=records[id(runs[0])].record.get("trained_parameters"),
        )
        columns.append(_Column(record=record, runs=tuple(runs)))
    return tuple(sorted(columns, key=_place))


def _group(results: Results) -> Literal["bridge", "layer_sweep", "baseline"]:
    if results.provenance.kind == "baseline":
        return "baseline"
    return "layer_sweep" if results.provenance.fusion == "single_layer" else "bridge"


def _place(column: _Column) -> tuple[int, int, str]:
    record = column.record
    return ("bridge", "layer_sweep", "baseline").index(record.group), record.layer or 0, record.name


def _reference(table: _Table, tables: Sequence[_Table], name: str | None) -> _Column:
    known = {column.record.name for found in tables for column in found.columns}
    if name is not None and name not in known:
        raise ConfigError(unknown_name("set-up", name, known))
    named = [column for column in table.columns if column.record.name == name]
    last = [c for c in table.columns if c.record.group == "bridge" and c.record.fusion == "last_layer"]
    plain = [column for column in last if column.record.name == "last_layer"]
    return [*named, *plain, *last, *table.columns][0]


# ------------------------------------------------------------------------------------------------------------
# Set-ups to figures


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A set-up and the reference on one language: rows of equal seeds."""

    correct_KN: NDArray[np.bool_]
    reference_KN: NDArray[np.bool_]


def _analyse_table(
    table: _Table, reference: _Column, wanted: str | None, num_resamples: int, seed: int
) -> TaskAnalysis:
    seen = compare.seen_by_any(table.runs)
    codes = {code for run in table.runs for code in run.languages}
    ordered = sorted(codes, key=lambda code: (code not in (seen or ()), code))
    common = [code for code in ordered if all(column.has([code]) for column in table.columns)]
    unseen = [code for code in common if seen is not None and code not in seen]
    averages: dict[Average, list[str]] = {"average": common, "zero-shot average": unseen}
    averages = {name: found for name, found in averages.items() if found}
    figures = _Figures(table, reference)
    for found in [*([code] for code in ordered), *averages.values()]:
        figures.ask(found)
    figures.answer(num_resamples, seed)
    differences = _adjust({code: figures.differences([code]) for code in ordered}, seen)
    origin = table.runs[0].provenance
    return TaskAnalysis(
        task=origin.task,
        task_version=origin.task_version,
        split=origin.split,
        limit=origin.limit,
        method=table.method,
        reference=reference.record.name,
        set_ups=tuple(column.record for column in table.columns),
        languages=tuple(_language_row(code, table, figures, differences[code], seen) for code in ordered),
        averages=tuple(_average_row(name, found, table, figures) for name, found in averages.items()),
        parallel=len(ordered) > 1 and len({table.correctness.cluster(code) for code in ordered}) == 1,
        notes=tuple(dict.fromkeys(_notes(table, reference, wanted, common, codes))),
    )


class _Figures:
    """Everything asked about one table's languages and averages, estimated in one go."""

    def __init__(self, table: _Table, reference: _Column) -> None:
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
        for column in self._compared(codes):
            pairs = self._pairs(column, codes)
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
            estimate = self._estimates[column.record.name, False, tuple(codes)]
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

    def differences(self, codes: Sequence[str]) -> dict[str, Difference]:
        """Return set-up name -> difference to the reference, not yet adjusted; exact tests are of single languages."""
        found = {}
        for column in self._compared(codes):
            estimate = self._estimates[column.record.name, True, tuple(codes)]
            tests = [statistics.mcnemar(pair.correct_KN, pair.reference_KN) for pair in self._pairs(column, codes)]
            single, num_rows = len(codes) == 1, len(self._table.correctness.rows[codes[0]].ids)
            found[column.record.name] = Difference(
                mean=estimate.mean,
                low=estimate.low,
                high=estimate.high,
                p_bootstrap=estimate.p,
                p_mcnemar=tests[0].p if single else None,
                wins=sum(test.wins for test in tests),
                losses=sum(test.losses for test in tests),
                detectable=statistics.detectable_difference(num_rows, tests[0].discordant)
                if single
                else estimate.detectable,
            )
        return found

    def _having(self, codes: Sequence[str]) -> list[_Column]:
        return [column for column in self._table.columns if column.has(codes)]

    def _compared(self, codes: Sequence[str]) -> list[_Column]:
        if not self._reference.has(codes):
            return []
        return [column for column in self._having(codes) if column is not self._reference]

    def _pairs(self, column: _Column, codes: Sequence[str]) -> list[_Pair]:
        ours, theirs = pair_seeds(column.record, self._reference.record)
        of, method = self._table.correctness.of, self._table.method
        return [
            _Pair(
                correct_KN=of([column.runs[index] for index in ours], code, method),
                reference_KN=of([self._reference.runs[index] for index in theirs], code, method),
            )
            for code in codes
        ]


def pair_seeds(ours: SetUp, theirs: SetUp) -> tuple[list[int], list[int]]:
    """Return which run of one set-up is compared with which of the other, by their places.

    Runs of equal seeds are compared; a baseline of a single run, and where no seed is in both a set-up of a single
    run, with every run of the other; else runs in their order, as far as both go.
    """
    if ours.seeds == theirs.seeds:
        places = list(range(len(ours.seeds)))
        return places, places
    shared = [seed for seed in ours.seeds if seed is not None and seed in theirs.seeds]
    deterministic = any(item.group == "baseline" and len(item.seeds) == 1 for item in (ours, theirs))
    if shared and not deterministic:
        shared = list(dict.fromkeys(shared))
        return [ours.seeds.index(seed) for seed in shared], [theirs.seeds.index(seed) for seed in shared]
    count = max(len(ours.seeds), len(theirs.seeds))
    if 1 not in (len(ours.seeds), len(theirs.seeds)):
        count = min(len(ours.seeds), len(theirs.seeds))
    return [n % len(ours.seeds) for n in range(count)], [n % len(theirs.seeds) for n in range(count)]


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
    code: str, table: _Table, figures: _Figures, differences: dict[str, Difference], seen: set[str] | None
) -> LanguageRow:
    score = next(run.languages[code] for run in table.runs if code in run.languages)
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


def _average_row(name: Average, codes: Sequence[str], table: _Table, figures: _Figures) -> AverageRow:
    scores = [table.runs[0].languages[code] for code in codes]
    return AverageRow(
        name=name,
        languages=tuple(codes),
        n=sum(score.n for score in scores),
        majority=fmean(score.majority_accuracy for score in scores),
        accuracies=figures.accuracies(codes),
        differences=figures.differences(codes),
    )


# ------------------------------------------------------------------------------------------------------------
# What is said beside the figures


def _notes(
    table: _Table, reference: _Column, wanted: str | None, common: Sequence[str], codes: set[str]
) -> Iterator[str]:
    yield from compare.notes_on_runs(table.runs, common, codes)
    yield from compare.notes_on_seeds(table.checkpoints, [column.runs for column in table.columns])
    if wanted not in (None, reference.record.name):
        yield f"There is no set-up {wanted} here, so differences are to {reference.record.name}."
    trained = [column.record for column in table.columns if column.record.group != "baseline"]
    few = [f"{record.name} {len(record.seeds)}" for record in trained if len(record.seeds) < FEW_SEEDS]
    if few:
        yield f"Fewer than {FEW_SEEDS} seeds: {', '.join(few)}."
    single = [column.record.name for column in table.columns if len(column.runs) == 1]
    if single:
        yield f"Intervals are over rows alone, with one run: {', '.join(single)}."
    for column in table.columns:
        pairs = len(pair_seeds(column.record, reference.record)[0])
        if pairs < max(len(column.runs), len(reference.runs)):
            yield f"{column.record.name} is compared with {reference.record.name} in {pairs} pairs of runs."


def _claims(tasks: Sequence[TaskAnalysis], main: str | None) -> Iterator[Claim]:
    """Yield every bridge against the reference, by one method a task; the Transformer Softmax comes first."""
    first = {task.task: task for task in reversed(tasks)}  # of a task's methods, score comes before generate
    for name in sorted(first, key=lambda name: (name != main, name)):
        task = first[name]
        average = next((row for row in reversed(task.averages)), None)
        bridges = [item for item in task.set_ups if item.group == "bridge" and item.name != task.reference]
        reference = next(item for item in task.set_ups if item.name == task.reference)
        for item in sorted(bridges, key=lambda item: item.fusion != "transformer_softmax"):
            if average is not None:
                yield Claim(
                    task=name,
                    method=task.method,
                    set_up=item.name,
                    reference=task.reference,
                    average=average.name,
                    num_languages=len(average.languages),
                    num_seeds=len(pair_seeds(item, reference)[0]),
                    difference=average.differences[item.name],
                )


def _records(tables: Sequence[_Table]) -> Iterator[tuple[SetUpWeights | None, LearningCurve | None, Origin]]:
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
