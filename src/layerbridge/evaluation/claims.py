"""What is said beside the figures: claims in their order, adjusted for being several, and notes."""

from collections.abc import Iterator, Sequence

from layerbridge.analysis import Claim, TaskAnalysis
from layerbridge.evaluation import compare, statistics
from layerbridge.evaluation.set_ups import Column, Table, is_deterministic, num_seeds, pair_seeds, shared_seeds

FEW_SEEDS = 5
"""With fewer, a note says so."""


def claims_of(tasks: Sequence[TaskAnalysis], main: str | None) -> list[Claim]:
    """Return every bridge against the reference, by one method a task, with Holm's values of all but the first.

    The main task comes first, and in each task the Transformer Softmax. Which claim is the first does not depend on
    what was found, so it stands alone.
    """
    found = list(_claims(tasks, main))
    adjusted = statistics.holm([claim.difference.p_bootstrap for claim in found[1:]])
    others = [claim.model_copy(update={"p_holm": p}) for claim, p in zip(found[1:], adjusted, strict=True)]
    return [*found[:1], *others]


def _claims(tasks: Sequence[TaskAnalysis], main: str | None) -> Iterator[Claim]:
    shown = [task for task in tasks if _compared(task)]
    first = {task.task: task for task in reversed(shown)}  # of a task's methods, score comes before generate
    for name in sorted(first, key=lambda name: (name != main, name)):
        task = first[name]
        average = next((row for row in reversed(task.averages)), None)
        reference = next(item for item in task.set_ups if item.name == task.reference)
        bridges = [item for item in task.set_ups if item.name in _compared(task)]
        for item in sorted(bridges, key=lambda item: item.fusion != "transformer_softmax"):
            if average is not None:
                yield Claim(
                    task=name,
                    method=task.method,
                    set_up=item.name,
                    reference=reference.name,
                    average=average.name,
                    num_languages=len(average.languages),
                    num_seeds=num_seeds(item, reference),
                    difference=average.differences[item.name],
                )


def _compared(task: TaskAnalysis) -> list[str]:
    if task.reference is None:
        return []
    return [item.name for item in task.set_ups if item.group == "bridge" and item.name != task.reference]


def notes_of(
    table: Table, reference: Column | None, wanted: str | None, common: Sequence[str], codes: Sequence[str]
) -> Iterator[str]:
    """Yield what a reader of a table must know beside its numbers.

    Args:
        table: of one task and method.
        reference: what its differences are to.
        wanted: the reference asked for.
        common: languages of the averages.
        codes: all languages.
    """
    yield from _notes_on_averages(table, common, codes)
    yield from compare.notes_on_runs(table.runs)
    yield from compare.notes_on_seeds(table.checkpoints, [column.runs for column in table.columns])
    if reference is not None and wanted not in (None, reference.record.name):
        yield f"There is no set-up {wanted} here, so differences are to {reference.record.name}."
    trained = [column.record for column in table.columns if column.record.group != "baseline"]
    few = [f"{record.name} {len(record.seeds)}" for record in trained if len(record.seeds) < FEW_SEEDS]
    if few:
        yield f"Fewer than {FEW_SEEDS} seeds: {', '.join(few)}."
    single = [column.record.name for column in table.columns if len(column.runs) == 1]
    if single:
        yield f"Intervals are over rows alone, with one run: {', '.join(single)}."
    for column in table.bridges:
        if reference is not None and column is not reference:
            yield from _notes_on_pairs(column, reference)


def _notes_on_averages(table: Table, common: Sequence[str], codes: Sequence[str]) -> Iterator[str]:
    if len(common) < len(codes):
        found = ", ".join(common) or "none, so there are none"
        yield f"Averages are over the languages that all bridges have: {found}."
    for column in table.columns:
        lacking = [code for code in common if not column.has([code])]
        if lacking:
            yield f"{column.record.name} has no {', '.join(lacking)}, and is left out of averages with them."


def _notes_on_pairs(column: Column, reference: Column) -> Iterator[str]:
    """Say where runs are not compared seed by seed."""
    ours, theirs = column.record, reference.record
    if any(map(is_deterministic, (ours, theirs))):
        return
    pairs = len(pair_seeds(ours, theirs)[0])
    if ours.seeds == theirs.seeds:
        return
    if shared_seeds(ours, theirs):
        if pairs < max(len(ours.seeds), len(theirs.seeds)):
            found = "1 pair" if pairs == 1 else f"{pairs} pairs"
            yield f"{ours.name} is compared with {theirs.name} in {found} of runs."
        return
    alone, other = (ours, theirs) if len(ours.seeds) == 1 else (theirs, ours)
    if len(alone.seeds) == 1 and len(other.seeds) > 1:
        yield (
            f"{alone.name} is one training, which every seed of {other.name} is compared with: "
            "what another training of it would give is not in the interval."
        )
    else:
        found = "1 pair" if pairs == 1 else f"{pairs} pairs"
        yield f"{ours.name} and {theirs.name} share no seed: their runs are compared in order, in {found}."
