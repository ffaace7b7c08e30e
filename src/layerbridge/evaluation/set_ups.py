"""Evaluated runs -> tables of set-ups: one table for a task and method, one column for runs that differ in the seed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from layerbridge.analysis import SetUp
from layerbridge.errors import ConfigError, unknown_name
from layerbridge.evaluation import compare
from layerbridge.evaluation.correctness import Correctness
from layerbridge.evaluation.run_records import RunRecords
from layerbridge.results import Method, Results


@dataclass(frozen=True, kw_only=True)
class Column:
    """One set-up: what a report says of it, and its runs in the order of the seeds."""

    record: SetUp
    runs: tuple[Results, ...]

    def has(self, codes: Iterable[str]) -> bool:
        """Whether every run was evaluated on all of these languages."""
        return all(code in run.languages for code in codes for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One task, read one way."""

    method: Method
    columns: tuple[Column, ...]
    correctness: Correctness
    records: Mapping[int, RunRecords]
    """By identity of the results."""
    checkpoints: tuple[tuple[Results, ...], ...]

    @property
    def task(self) -> str:
        """Its task's name."""
        return self.runs[0].provenance.task

    @property
    def runs(self) -> list[Results]:
        """All columns' runs."""
        return [run for column in self.columns for run in column.runs]

    @property
    def bridges(self) -> list[Column]:
        """Without the layer sweep."""
        return [column for column in self.columns if column.record.group == "bridge"]

    @property
    def has_baselines_alone(self) -> bool:
        """Whether nothing in it was trained as a bridge."""
        return all(column.record.group == "baseline" for column in self.columns)


def tables_of(read: Sequence[RunRecords]) -> Iterator[Table]:
    """Yield one table a method of one task's evaluations.

    Raises:
        DataError: what cannot be compared, bridges between other frozen models included, and damaged predictions.
    """
    records = {id(run.results): run for run in read}
    checkpoints = compare.distinct_checkpoints(run.results for run in read)
    given = [same[0] for same in checkpoints]
    compare.check_comparable(given)
    compare.check_one_pair([results for results in given if results.provenance.kind == "bridge"])
    correctness = Correctness()
    for results in given:
        correctness.add(results, records[id(results)].folder)
    for method in get_args(Method):
        having = [results for results in given if method in results.provenance.methods]
        if having:
            yield Table(
                method=method,
                columns=_columns(having, records),
                correctness=correctness,
                records=records,
                checkpoints=tuple(tuple(same) for same in checkpoints if method in same[0].provenance.methods),
            )


def _columns(results: Sequence[Results], records: Mapping[int, RunRecords]) -> tuple[Column, ...]:
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
        columns.append(Column(record=record, runs=tuple(runs)))
    return tuple(sorted(columns, key=_place))


def _group(results: Results) -> Literal["bridge", "layer_sweep", "baseline"]:
    if results.provenance.kind == "baseline":
        return "baseline"
    return "layer_sweep" if results.provenance.fusion == "single_layer" else "bridge"


def _place(column: Column) -> tuple[int, int, str]:
    record = column.record
    return ("bridge", "layer_sweep", "baseline").index(record.group), record.layer or 0, record.name


def reference_of(table: Table, tables: Sequence[Table], name: str | None) -> Column | None:
    """Return what a table's differences are to; None: it has baselines alone, and bridges are read the other way.

    Raises:
        ConfigError: no set-up of that name in any table.
    """
    known = {column.record.name for found in tables for column in found.columns}
    if name is not None and name not in known:
        raise ConfigError(unknown_name("set-up", name, known))
    named = [column for column in table.columns if column.record.name == name]
    last = [column for column in table.bridges if column.record.fusion == "last_layer"]
    plain = [column for column in last if column.record.name == "last_layer"]
    read_otherwise = any(other.task == table.task and not other.has_baselines_alone for other in tables)
    if not named and table.has_baselines_alone and read_otherwise:
        return None
    return [*named, *plain, *last, *table.columns][0]


def pair_seeds(ours: SetUp, theirs: SetUp) -> tuple[list[int], list[int]]:
    """Return which run of one set-up is compared with which of the other, by their places.

    Runs of equal seeds are compared; a baseline of a single run, and where no seed is in both a set-up of a single
    run, with every run of the other; else runs in their order, as far as both go.
    """
    if ours.seeds == theirs.seeds:
        places = list(range(len(ours.seeds)))
        return places, places
    shared = shared_seeds(ours, theirs)
    if shared and not any(map(is_deterministic, (ours, theirs))):
        return [ours.seeds.index(seed) for seed in shared], [theirs.seeds.index(seed) for seed in shared]
    count = max(len(ours.seeds), len(theirs.seeds))
    if 1 not in (len(ours.seeds), len(theirs.seeds)):
        count = min(len(ours.seeds), len(theirs.seeds))
    return [n % len(ours.seeds) for n in range(count)], [n % len(theirs.seeds) for n in range(count)]


def shared_seeds(ours: SetUp, theirs: SetUp) -> list[int]:
    """Return the seeds that both have, each once, in our order."""
    return list(dict.fromkeys(seed for seed in ours.seeds if seed is not None and seed in theirs.seeds))


def num_seeds(ours: SetUp, theirs: SetUp) -> int:
    """Return how many trainings a comparison rests on: of the side that has fewer, a deterministic one aside."""
    sides = zip((ours, theirs), pair_seeds(ours, theirs), strict=True)
    return min((len(set(places)) for item, places in sides if not is_deterministic(item)), default=1)


def is_deterministic(item: SetUp) -> bool:
    """Whether another seed would change nothing: a baseline of one run."""
    return item.group == "baseline" and len(item.seeds) == 1
