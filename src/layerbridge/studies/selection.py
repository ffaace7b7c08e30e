"""Which set-up is chosen, on dev rows alone: finished studies in, a log of the choice out.

What is reported in the end may choose nothing. So results of any split but those of `CHOOSES` are refused, and so are
rows that a report, if it is named, has too. The figures are those of `analyse`, as a report shows them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layerbridge.analysis import Analysis, AverageRow, Origin, SetUp, TaskAnalysis
from layerbridge.errors import ConfigError, DataError, unknown_name
from layerbridge.evaluation import statistics
from layerbridge.evaluation.analyse import analyse
from layerbridge.evaluation.correctness import find_evaluations
from layerbridge.evaluation.run_records import notes_on_studies
from layerbridge.results import Results, read_results
from layerbridge.studies.inputs import HELD_OUT
from layerbridge.studies.reproduce import STUDY_FILE
from layerbridge.studies.selection_log import Candidate, Report, Selection, StudyOrigin

CHOOSES = ("dev", HELD_OUT)
"""Splits whose rows may choose a set-up."""


def select(
    folders: Sequence[str | Path],
    *,
    task: str | None = None,
    reference: str | None = None,
    reports: Sequence[str | Path] = (),
    unfinished: bool = False,
    command: str | None = None,
) -> Selection:
    """Rank the set-ups of dev studies by their mean over the languages not seen in training, and choose the first.

    A set-up is ranked if it has every seed that the reference has. Of equal means the one that trains fewer parameters
    comes first. A task without unseen languages is ranked by its average.

    Args:
        folders: of studies, or runs at any depth, as `analyse` takes them.
        task: that decides; by default the only one with unseen languages.
        reference: set-up that differences are to, by default as of `analyse`.
        reports: folders whose results are to be reported; no split of theirs may be among those read here.
        unfinished: rank also while some of a study's jobs are not done.
        command: what was typed.

    Raises:
        ConfigError: nothing to rank, several tasks and none named, or a study that is not finished.
        DataError: results of another split than `CHOOSES`, a split that a report has too, a report without results, or
            what `analyse` refuses.
    """
    paths = [Path(folder) for folder in folders]
    results = [read_results(file) for file in find_evaluations(paths)]
    _check_splits(results)
    reported = {Path(folder).resolve(): _reported(folder) for folder in reports}
    _check_not_reported(results, [found for some in reported.values() for found in some])
    missing = tuple(notes_on_studies(paths))
    if missing and not unfinished:
        raise ConfigError(
            f"{' '.join(missing)} A choice among what happens to be there is none: finish the study, or type "
            "--unfinished, and the log says so."
        )
    analysis = analyse(paths, reference=reference)
    table = _table(analysis, task)
    average = _average(table)
    candidates, notes = _candidates(analysis, table, average)
    now = datetime.now(UTC).replace(microsecond=0)
    return Selection(
        rule=f"the highest mean over {_over(average)}, of the set-ups with every seed of {table.reference}; of equals "
        "the one that trains fewer parameters",
        task=table.task,
        task_version=table.task_version,
        split=table.split,
        limit=table.limit,
        method=table.method,
        average=average.name,
        languages=average.languages,
        n=average.n,
        data_sha256=_data(analysis, table),
        majority=average.majority,
        reference=str(table.reference),
        encoder=table.encoder,
        llm=table.llm,
        candidates=tuple(candidates),
        studies=tuple(_studies(paths)),
        reports_checked=sum(map(len, reported.values())),
        reports=tuple(Report(name=path.name, results=len(some), checked_at=now) for path, some in reported.items()),
        command=command,
        results_created=analysis.created,
        chosen_at=now,
        notes=(*missing, *_never_run(paths, results, table.task), *notes, *table.notes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What may not choose


def _check_splits(results: Iterable[Results]) -> None:
    refused: dict[str, list[str]] = {}
    for found in results:
        origin = found.provenance
        if origin.split not in CHOOSES:
            refused.setdefault(f"{origin.task} {origin.split}", []).append(origin.run)
    if refused:
        shown = "; ".join(f"split {what!r}: {_some(runs)}" for what, runs in refused.items())
        raise DataError(
            f"Nothing is chosen on rows that are reported. Only {' and '.join(CHOOSES)} may choose, and these are of "
            f"{shown}. Evaluate on dev (`evaluation: {{split: dev}}` in the study), and give that study alone."
        )


def _reported(folder: str | Path) -> list[Results]:
    try:
        files = find_evaluations([folder])
    except (ConfigError, DataError) as error:
        advice = "Choose without --report while there is nothing to report yet, and give it when there is."
        raise type(error)(f"{error} {advice}") from None
    return [read_results(file) for file in files]


def _check_not_reported(results: Iterable[Results], reported: Iterable[Results]) -> None:
    """Refuse whole splits of a report, known by their hash: results do not say which rows two other splits share."""
    rows = {
        (found.provenance.task, code, score.data_sha256): found.provenance.run
        for found in reported
        for code, score in found.languages.items()
    }
    for found in results:
        for code, score in sorted(found.languages.items()):
            run = rows.get((found.provenance.task, code, score.data_sha256))
            if run is not None:
                raise DataError(
                    f"Nothing is chosen on rows that are reported: the {code} rows of {found.provenance.task} that "
                    f"{found.provenance.run} was evaluated on (sha256 {score.data_sha256[:12]}) are those of {run} in "
                    "the report. Choose on other rows, such as `evaluation: {split: held_out}`."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Ranking


def _table(analysis: Analysis, name: str | None) -> TaskAnalysis:
    """Return the task that decides, read by the first of its methods that bridges have."""
    tables = _tables(analysis)
    if not tables:
        raise ConfigError("There is no bridge among these results, so nothing to choose. Give a study's folder.")
    if name is not None:
        if name not in tables:
            raise ConfigError(unknown_name("task", name, tables))
        return tables[name]
    unseen = [table for table in tables.values() if _average(table).name == "zero-shot average"]
    possible = unseen or list(tables.values())
    if len(possible) > 1:
        names = ", ".join(sorted(table.task for table in possible))
        raise ConfigError(f"These results are of several tasks: {names}. Say which one decides, with --task.")
    return possible[0]


def _tables(analysis: Analysis) -> dict[str, TaskAnalysis]:
    bridges = [table for table in analysis.tasks if any(item.group == "bridge" for item in table.set_ups)]
    return {table.task: table for table in reversed(bridges)}  # of a task's methods, score comes before generate


def _average(table: TaskAnalysis) -> AverageRow:
    if not table.averages:
        raise DataError(f"The set-ups of task {table.task} have no language in common, so they cannot be ranked.")
    return table.averages[-1]  # over the unseen languages, if there are any


def _over(average: AverageRow) -> str:
    kind = "languages not seen in training" if average.name == "zero-shot average" else "languages"
    return f"{len(average.languages)} {kind}"


def _candidates(analysis: Analysis, table: TaskAnalysis, average: AverageRow) -> tuple[list[Candidate], list[str]]:
    """Return the set-ups, ranked ones first, and what must be known beside."""
    bridges = [item for item in table.set_ups if item.group == "bridge" and item.name in average.accuracies]
    base = next((item for item in bridges if item.name == table.reference), None)
    if base is None:
        raise ConfigError(f"The reference {table.reference} is no trained bridge. Name another with --reference.")
    ranked = [item for item in bridges if set(base.seeds) <= set(item.seeds)]

    def place(item: SetUp) -> tuple[float, int, str]:
        return -round(average.accuracies[item.name].mean, 12), item.trained_parameters or 0, item.name

    ranked.sort(key=place)
    rest = sorted((item for item in bridges if item not in ranked), key=place)
    compared = [item.name for item in ranked if item is not base]
    holm = dict(zip(compared, statistics.holm([average.differences[n].p_bootstrap for n in compared]), strict=True))
    english = next((row.accuracies for row in table.languages if row.code == "en"), {})
    others = [other for other in _tables(analysis).values() if other.task != table.task]
    found = [
        Candidate(
            set_up=item.name,
            rank=rank if item in ranked else None,
            fusion=item.fusion,
            seeds=item.seeds,
            trained_parameters=item.trained_parameters,
            accuracy=average.accuracies[item.name],
            difference=average.differences.get(item.name),
            p_holm=holm.get(item.name),
            english=english.get(item.name),
            beside={
                other.task: _average(other).accuracies[item.name]
                for other in others
                if item.name in _average(other).accuracies
            },
            checkpoints={origin.run: origin.checkpoint_sha256 for origin in _origins(analysis, table, item)},
        )
        for rank, item in enumerate([*ranked, *rest], start=1)
    ]
    return found, list(_notes(found, base))


def _origins(analysis: Analysis, table: TaskAnalysis, item: SetUp) -> list[Origin]:
    return [o for o in analysis.origins if (o.task, o.set_up) == (table.task, item.name) and o.run in item.runs]


def _data(analysis: Analysis, table: TaskAnalysis) -> dict[str, str]:
    found: dict[str, str] = {}
    for origin in analysis.origins:
        if origin.task == table.task:
            found |= origin.data_sha256  # `analyse` refuses results on other rows
    return dict(sorted(found.items()))


def _notes(candidates: Sequence[Candidate], base: SetUp) -> Iterable[str]:
    lacking = [item.set_up for item in candidates if item.rank is None]
    if lacking:
        yield f"Not ranked, for want of seeds that {base.name} has: {', '.join(lacking)}."
    chosen, ranked = candidates[0], [item for item in candidates if item.rank is not None]
    if chosen.difference is None:
        yield f"No set-up had a higher mean than the reference, {base.name}."
    elif chosen.p_holm is not None and chosen.p_holm >= statistics.LEVEL:
        yield f"That {chosen.set_up} is better than {base.name} is not shown on these rows; it had the highest mean."
    if len(ranked) > 2:
        yield f"The first of {len(ranked)} is flattered by having been chosen: what it is worth, other rows say."


def _never_run(paths: Iterable[Path], results: Iterable[Results], task: str) -> Iterator[str]:
    """Yield which set-ups that a study's file has were never run on a task."""
    runs = (found.provenance.run for found in results if found.provenance.task == task)
    run = {re.sub(r"-seed-\d+$", "", name) for name in runs}
    for data in _records(paths):
        names = data.get("all_set_ups", ())
        if lacking := [name for name in names if name not in run]:
            yield (
                f"Never run on {task}: {len(lacking)} of the {len(names)} set-ups of study {data['study']}: "
                f"{', '.join(lacking)}."
            )


def _studies(paths: Iterable[Path]) -> Iterator[StudyOrigin]:
    for data in _records(paths):
        yield StudyOrigin(**{key: data[key] for key in StudyOrigin.model_fields if key in data})


def _records(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the study.json of each folder that has one."""
    for path in paths:
        if (path / STUDY_FILE).is_file():
            yield json.loads((path / STUDY_FILE).read_text(encoding="utf-8"))


def _some(runs: Sequence[str]) -> str:
    names = sorted(set(runs))
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"])
