"""Several results -> one table, languages down, set-ups across. Refuses to compare what is not comparable.

Runs that differ in the seed alone are one column: mean and sample standard deviation over the seeds. An
average is over the languages that all columns have; a zero-shot language is one no run has seen in training.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from layerbridge.errors import ConfigError, DataError
from layerbridge.results import LanguageScore, Method, Provenance, Results

AVERAGE = "average"
ZERO_SHOT_AVERAGE = "zero-shot average"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracy of one set-up on one language or average, 0 to 1."""

    mean: float
    deviation: float | None
    """Sample standard deviation over seeds; None: one seed."""
    unreadable: float
    """Fraction of answers that could not be read, mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One language, or an average over several."""

    name: str
    is_average: bool
    seen: bool | None
    """In training, by any run of the table; None: an average, or unknown of every run."""
    n: int
    majority: float
    """Accuracy of always giving the most frequent answer, 0 to 1."""
    cells: tuple[Cell | None, ...]
    """One per column; None: that run has no such language."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One set-up: one run, or several that differ in the seed alone."""

    name: str
    num_seeds: int
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table, before it is drawn."""

    title: str
    method: Method
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What a reader must know beside the numbers, such as texts that were cut."""


def comparison(results: Iterable[Results], method: Method | None = None) -> Comparison:
    """Put results side by side.

    Args:
        results: Of one task, version, split, limit and data; the same results twice count once.
        method: By default `score` if all results have it, else `generate`.

    Raises:
        ConfigError: nothing to compare, or results without `method`.
        DataError: different tasks, versions, splits, limits or data; the message says which run has which.
    """
    checkpoints = distinct_checkpoints(results)
    given = [same[0] for same in checkpoints]
    if not given:
        raise ConfigError("There are no results to compare. Give at least one run.")
    check_comparable(given)
    method = _choose_method(given, method)
    groups = group_seeds(given)
    seen = seen_by_any(given)
    codes = {code for result in given for code in result.languages}
    ordered = sorted(codes, key=lambda code: (code not in (seen or ()), code))
    rows = [_language_row(code, groups, method, seen) for code in ordered]
    common = [code for code in ordered if all(code in result.languages for result in given)]
    if common:
        rows.append(_average_row(AVERAGE, common, groups, method))
    zero_shot = [code for code in common if seen is not None and code not in seen]
    if zero_shot:
        rows.append(_average_row(ZERO_SHOT_AVERAGE, zero_shot, groups, method))
    first = given[0].provenance
    limit = f", first {first.limit} rows" if first.limit else ""
    return Comparison(
        title=f"{first.task} (version {first.task_version}), {first.split}{limit}: accuracy % by {method}",
        method=method,
        columns=columns_of(groups),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(_notes(checkpoints, groups, common, codes))),
    )


def distinct_checkpoints(results: Iterable[Results]) -> list[list[Results]]:
    """Put together what was given twice: one evaluation of one checkpoint; newest first."""
    found: dict[str, list[Results]] = {}
    for result in results:
        origin = result.provenance.model_dump(
            mode="json", exclude={"run", "seed", "versions", "setup_sha256", "languages_seen", "bases"}
        )
        data = {code: score.data_sha256 for code, score in result.languages.items()}
        found.setdefault(json.dumps([origin, data], sort_keys=True), []).append(result)
    return [sorted(same, key=lambda result: result.created, reverse=True) for same in found.values()]


def check_comparable(results: Sequence[Results]) -> None:
    """Raise a DataError, saying which run has which, unless task, version, split, limit and data are one."""
    for name in ("task", "task_version", "split", "limit"):
        _check_same(name.replace("_", " "), [(r.provenance.run, getattr(r.provenance, name)) for r in results])
    for code in sorted({code for result in results for code in result.languages}):
        having = [result for result in results if code in result.languages]
        _check_same(
            f"data sha256 of language {code!r}",
            [(result.provenance.run, result.languages[code].data_sha256) for result in having],
        )


def _check_same(what: str, values: Iterable[tuple[str, object]]) -> None:
    runs_by_value: dict[object, list[str]] = {}
    for run, value in values:
        runs_by_value.setdefault(value, []).append(run)
    if len(runs_by_value) > 1:
        found = "; ".join(f"{_brief(value)} of {', '.join(runs)}" for value, runs in runs_by_value.items())
        raise DataError(f"These results cannot share a table: {what} is {found}. Compare them apart.")


def _brief(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:12]
    return "none" if value is None else repr(value)


def _choose_method(results: Sequence[Results], method: Method | None) -> Method:
    if method is None:
        method = "score" if all("score" in result.provenance.methods for result in results) else "generate"
    lacking = [result.provenance for result in results if method not in result.provenance.methods]
    if lacking:
        found = "; ".join(f"{origin.run} has {', '.join(origin.methods)}" for origin in lacking)
        raise ConfigError(f"Not all results have method {method!r}: {found}. Evaluate with --methods {method}.")
    return method


def seen_by_any(results: Sequence[Results]) -> set[str] | None:
    """Return the languages that any of the runs has seen in training; None: unknown of all."""
    known = [result.provenance.languages_seen for result in results if result.provenance.languages_seen is not None]
    return {code for codes in known for code in codes} if known else None


def group_seeds(results: Sequence[Results]) -> list[list[Results]]:
    """Group runs that differ in seed and checkpoint alone; a checkpoint of unknown set-up stands alone."""
    groups: dict[str, list[Results]] = {}
    for number, result in enumerate(results):
        origin = result.provenance
        key = [
            origin.setup_sha256 or number,
            origin.config_sha256,
            {side: base.fingerprint for side, base in origin.bases.items()},
            sorted(origin.languages_seen or ()),
            origin.max_source_tokens,
            origin.max_new_tokens,
            sorted(result.languages),
        ]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(result)
    for group in groups.values():
        group.sort(key=lambda result: (result.provenance.seed is None, result.provenance.seed or 0))
    return list(groups.values())


def columns_of(groups: Sequence[Sequence[Results]]) -> tuple[Column, ...]:
    """Return name, number of seeds and runs of each group; names are unique."""
    names = [_group_name([result.provenance for result in group]) for group in groups]
    columns = []
    for number, (name, group) in enumerate(zip(names, groups, strict=True), start=1):
        unique = name if names.count(name) == 1 else f"{name} [{number}]"
        runs = tuple(result.provenance.run for result in group)
        columns.append(Column(name=unique, num_seeds=len(group), runs=runs))
    return tuple(columns)


def _group_name(origins: Sequence[Provenance]) -> str:
    """Return what the names of a group's runs have in common: `ts-seed-0`, `ts-seed-1` -> `ts`, also of one alone."""
    runs = [origin.run for origin in origins]
    if len(set(runs)) == 1:
        return runs[0].removesuffix(f"-seed-{origins[0].seed}") or runs[0]
    pairs = zip(min(runs), max(runs), strict=False)
    common = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return re.sub(r"([-_. ](seed|s)?)*[-_. ]*$", "", common) or " + ".join(runs)


def _cell(group: Sequence[Results], codes: Sequence[str], method: Method) -> Cell | None:
    """Average over languages within each seed, then over seeds."""
    if any(code not in result.languages for result in group for code in codes):
        return None
    accuracies = [fmean(result.languages[code].accuracy(method) for code in codes) for result in group]
    unreadable = [fmean(result.languages[code].unreadable_fraction(method) for code in codes) for result in group]
    return Cell(
        mean=fmean(accuracies),
        deviation=stdev(accuracies) if len(accuracies) > 1 else None,
        unreadable=fmean(unreadable),
    )


def _any_score(code: str, groups: Sequence[Sequence[Results]]) -> LanguageScore:
    """Return a language's score in some run: n and majority are the data's, and the data is one."""
    return next(result.languages[code] for group in groups for result in group if code in result.languages)


def _language_row(code: str, groups: Sequence[Sequence[Results]], method: Method, seen: set[str] | None) -> Row:
    score = _any_score(code, groups)
    return Row(
        name=code,
        is_average=False,
        seen=None if seen is None else code in seen,
        n=score.n,
        majority=score.majority_accuracy,
        cells=tuple(_cell(group, [code], method) for group in groups),
    )


def _average_row(name: str, codes: Sequence[str], groups: Sequence[Sequence[Results]], method: Method) -> Row:
    scores = [_any_score(code, groups) for code in codes]
    return Row(
        name=name,
        is_average=True,
        seen=None,
        n=sum(score.n for score in scores),
        majority=fmean(score.majority_accuracy for score in scores),
        cells=tuple(_cell(group, codes, method) for group in groups),
    )


def _notes(
    checkpoints: Sequence[Sequence[Results]],
    groups: Sequence[Sequence[Results]],
    common: Sequence[str],
    codes: set[str],
) -> Iterable[str]:
    if len(common) < len(codes):
        found = ", ".join(common) or "none, so there are none"
        yield f"Averages are over the languages that all runs have: {found}."
    yield from notes_on_runs([same[0] for same in checkpoints])
    yield from notes_on_seeds(checkpoints, groups)


def notes_on_runs(results: Sequence[Results]) -> Iterable[str]:
    """Yield what a reader must know of runs in one table: frozen models, limits, texts cut."""
    for side, title in (("encoder", "Encoders"), ("llm", "LLMs")):
        yield from _note_unlike(f"{title} differ", [(run, _base(run, side)) for run in results])
    generated = [run for run in results if "generate" in run.provenance.methods]
    yield from _note_unlike("Tokens generated at most differ", [(r, r.provenance.max_new_tokens) for r in generated])
    unknown = [result.provenance.run for result in results if result.provenance.languages_seen is None]
    if unknown:
        yield f"Languages seen in training are unknown of {', '.join(unknown)}."
    yield from _note_unlike("Tokens read per text differ", [(r, r.provenance.max_source_tokens) for r in results])
    runs_by_cut: dict[tuple[int, str], list[str]] = {}
    for result in results:
        cut = {code: score.truncated for code, score in sorted(result.languages.items()) if score.truncated}
        if cut:
            found = ", ".join(f"{code} {num}" for code, num in cut.items())
            runs_by_cut.setdefault((result.provenance.max_source_tokens, found), []).append(result.provenance.run)
    for (limit, found), runs in runs_by_cut.items():
        yield f"{_some(runs)}: texts cut at {limit} tokens: {found}."


def _note_unlike(what: str, values: Iterable[tuple[Results, int | str | None]]) -> Iterable[str]:
    """Say who has what, unless all have the same; None: has none of it."""
    runs_by_value: dict[int | str, list[str]] = {}
    for result, value in values:
        if value is not None:
            runs_by_value.setdefault(value, []).append(result.provenance.run)
    if len(runs_by_value) > 1:
        found = "; ".join(f"{value} in {_some(runs_by_value[value])}" for value in sorted(runs_by_value, key=_order))
        yield f"{what}: {found}."


def _order(value: int | str) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, value)


def _base(result: Results, side: str) -> str | None:
    base = result.provenance.bases.get(side)
    return None if base is None else f"{base.name} ({base.fingerprint[:12]})"


def check_one_pair(results: Sequence[Results]) -> None:
    """Raise a DataError, saying which run has which, unless these bridges stand between the same frozen models."""
    for side, title in (("encoder", "encoder"), ("llm", "LLM")):
        found = [(result.provenance.run, _base(result, side)) for result in results]
        _check_same(f"{title} of bridges", [(run, base) for run, base in found if base is not None])


def _some(runs: Sequence[str]) -> str:
    shown = runs if len(runs) <= 4 else [*runs[:3], f"{len(runs) - 3} more"]
    return ", ".join(shown)


def notes_on_seeds(checkpoints: Sequence[Sequence[Results]], groups: Sequence[Sequence[Results]]) -> Iterable[str]:
    """Yield which checkpoints were given twice, and which groups hold a seed twice."""
    for same in checkpoints:
        runs = sorted({result.provenance.run for result in same})
        if len(runs) > 1:
            yield f"{_some(runs)} have one and the same checkpoint, which counts once."
    for group in groups:
        seeds = [result.provenance.seed for result in group]
        if len(set(seeds)) < len(seeds):
            runs = [result.provenance.run for result in group]
            yield f"The spread of {', '.join(runs)} is not of seeds alone: {', '.join(map(str, seeds))}."
