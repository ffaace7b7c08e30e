"""What an analysis says of one task, chosen and ordered as tables for a reader."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

from layerbridge.analysis import Accuracy, Analysis, AverageRow, Difference, LanguageRow, SetUp, TaskAnalysis
from layerbridge.reporting.tables import Cell, Column, Row, Table, empty_cell, text_cell
from layerbridge.reporting.wording import (
    METHODS,
    NOTHING,
    RESOURCES,
    interval,
    percent,
    points,
    probability,
    set_up_name,
    task_name,
    verdict,
)

NO_ACCURACY = Cell(text=NOTHING, values=(None,) * 4)
ACCURACY = ("accuracy", "low", "high", "unreadable")
LANGUAGE = Column(heading="language", parts=("language", "code", "script"), is_text=True)


def slug(*parts: str) -> str:
    """Return a name for files and ids: letters, digits, `-`, `_` and `.` only.

    Names that had to be changed, or are long, end in a hash of what they were: no two become the same.
    """
    text = "-".join(parts)
    safe = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:100]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def main_set_up(analysis: Analysis, task: TaskAnalysis) -> str | None:
    """Return the set-up that a task is sorted by: of its first claim, else its first bridge beside the reference."""
    claimed = [c.set_up for c in analysis.claims if (c.task, c.method) == (task.task, task.method)]
    names = {set_up.name for set_up in task.set_ups}
    return next((name for name in claimed if name in names), next(iter(compared(task)), None))


def compared(task: TaskAnalysis) -> list[str]:
    """Return the bridges that are compared with the reference."""
    return [s.name for s in task.set_ups if s.group == "bridge" and s.name != task.reference]


def by_gain(task: TaskAnalysis, main: str | None) -> list[LanguageRow]:
    """Return the languages, those that `main` gains most in first; those without a difference last."""

    def gain(row: LanguageRow) -> tuple[float, str]:
        found = row.differences.get(main or "")
        return (-found.mean if found else float("inf"), row.code)

    return sorted(task.languages, key=gain)


def lines_of(task: TaskAnalysis, main: str | None) -> list[LanguageRow | AverageRow]:
    """Return the languages by gain, then the averages."""
    return [*by_gain(task, main), *task.averages]


def short_name(row: LanguageRow, task: TaskAnalysis) -> str:
    """Return a language's name without its parenthesis, where no other has the same."""
    names = [other.name.partition(" (")[0] for other in task.languages]
    bare = row.name.partition(" (")[0]
    return bare if names.count(bare) == 1 else row.name


def language_table(task: TaskAnalysis, main: str | None) -> Table | None:
    """Return languages x bridges: accuracies, then what each gains over the reference; None without any."""
    bridges = [s for s in task.set_ups if s.group == "bridge" or s.name == task.reference]
    if not bridges:
        return None
    others = compared(task)
    if main in others:
        others.remove(str(main))
        others.insert(0, str(main))
    columns = [
        LANGUAGE,
        Column(heading="seen", parts=("seen in training",), is_text=True),
        Column(heading="class", parts=("resource class",)),
        Column(heading="n", parts=("n",)),
        Column(heading="majority", parts=("majority",)),
        *(_accuracy_column(s, task) for s in bridges),
    ]
    for name in others:
        group = f"{set_up_name(name)} − {set_up_name(str(task.reference))}"
        columns += [
            Column(heading="points", group=group, parts=("difference", "low", "high", "wins", "losses")),
            Column(heading="p, bootstrap", group=group, parts=("p bootstrap", "p bootstrap, Holm")),
            Column(heading="p, McNemar", group=group, parts=("p McNemar", "p McNemar, Holm")),
        ]

    def line(row: LanguageRow | AverageRow) -> Row:
        cells = [*_heads(row, task), Cell(text=percent(row.majority), values=(row.majority,))]
        cells += [_accuracy_cell(row.accuracies.get(s.name), task) for s in bridges]
        for name in others:
            cells += _difference_cells(row.differences.get(name))
        return Row(cells=tuple(cells), is_average=isinstance(row, AverageRow))

    caption = [
        "Accuracy in percent with its 95 % bootstrap interval; differences in points on the same rows.",
        "p-values are two-sided; below each, adjusted within one set-up over the task's unseen languages (Holm; over "
        "all where none is unseen).",
        "McNemar is exact, of several pairs of runs combined by Rüger's rule; it is about these runs, not about other "
        "seeds.",
        "A difference is in bold colour where its interval leaves out zero and its bootstrap p-value is below 5 %, "
        "adjusted where it is adjusted.",
        "Class: resources of the language, 0 (left behind) to 5 (winner), Joshi et al. 2020; – is not known.",
    ]
    if any(row.seen for row in task.languages):
        caption.append("Seen: in training, by any set-up.")
    return Table(
        key=slug(task.task, task.method, "languages"),
        title=f"{_title(task)}: accuracy by language",
        columns=tuple(columns),
        rows=tuple(line(row) for row in lines_of(task, main)),
        caption=(*caption, *_unreadable_caption(task)),
    )


def baseline_table(task: TaskAnalysis, main: str | None) -> Table | None:
    """Return languages x baselines, with the reference and the main set-up beside them; None without baselines."""
    baselines = [s for s in task.set_ups if s.group == "baseline"]
    if not baselines:
        return None
    shown = [s for s in task.set_ups if s.name in (task.reference, main) and s.group != "baseline"] + baselines
    return _accuracy_table(
        task,
        main,
        shown,
        key="baselines",
        title="baselines",
        caption=(
            "A baseline is what a bridge is compared with. The LLM takes no part in a linear probe; a fused one reads "
            "the states of a trained bridge."
        ),
    )


def sweep_table(task: TaskAnalysis, main: str | None) -> Table | None:
    """Return languages x single layers; None without a layer sweep."""
    layers = sweep(task)
    caption = "Each column is a bridge that was trained on one encoder layer alone."
    return (
        _accuracy_table(task, main, layers, key="layers", title="one layer at a time", caption=caption)
        if layers
        else None
    )


def sweep(task: TaskAnalysis) -> list[SetUp]:
    """Return the layer sweep's set-ups in the order of their layers."""
    return sorted((s for s in task.set_ups if s.group == "layer_sweep"), key=lambda s: s.layer or 0)


def power_table(task: TaskAnalysis, main: str | None) -> Table | None:
    """Return what difference each language's rows can show; None where nothing is compared."""
    names = [name for name in compared(task) if any(name in row.differences for row in task.languages)]
    if not names:
        return None
    columns = [LANGUAGE, Column(heading="n", parts=("n",))]
    for name in names:
        parts = ("detectable", "difference found")
        columns += [
            Column(heading="can show", group=set_up_name(name), parts=parts[:1]),
            Column(heading="found", group=set_up_name(name), parts=parts[1:]),
        ]

    def line(row: LanguageRow | AverageRow) -> Row:
        head, *_, n = _heads(row, task)
        cells = [head, n]
        for name in names:
            found = row.differences.get(name)
            cells += [
                Cell(text=percent(found.detectable), values=(found.detectable,)) if found else empty_cell(columns[2]),
                Cell(text=points(found.mean), values=(found.mean,)) if found else empty_cell(columns[3]),
            ]
        return Row(cells=tuple(cells), is_average=isinstance(row, AverageRow))

    return Table(
        key=slug(task.task, task.method, "power"),
        title=f"{_title(task)}: what difference these rows can show",
        columns=tuple(columns),
        rows=tuple(line(row) for row in lines_of(task, main)),
        caption=(
            f"Can show: the smallest true difference to {set_up_name(str(task.reference))}, in points, that would be "
            "shown 4 times in 5 (80 % power at the 5 % level, before adjustment): of one pair of runs on one language "
            "by McNemar's test, given how often the two disagree (Connor 1987), else by the bootstrap over rows and "
            "seeds.",
            f"{NOTHING}: the two never disagreed, so these rows do not tell.",
        ),
    )


def origin_tables(analysis: Analysis) -> list[Table]:
    """Return where the numbers came from: a table of runs, and one of the data they were evaluated on."""
    if not analysis.origins:
        return []
    fields: list[tuple[str, Callable[..., object], bool]] = [
        ("task", lambda o: task_name(o.task), True),
        ("set-up", lambda o: set_up_name(o.set_up), True),
        ("seed", lambda o: o.seed, False),
        ("checkpoint", lambda o: o.checkpoint_sha256, True),
        ("config", lambda o: o.config_sha256, True),
        ("encoder", lambda o: o.encoder, True),
        ("LLM", lambda o: o.llm, True),
        ("training data", lambda o: o.train_source, True),
        ("its hash", lambda o: o.train_sha256, True),
        ("rows", lambda o: o.train_rows, False),
        ("steps", lambda o: o.steps, False),
        ("seconds", lambda o: o.seconds, False),
        ("machine", lambda o: o.machine, True),
        ("layerbridge", lambda o: o.versions.layerbridge, True),
        ("torch", lambda o: o.versions.torch, True),
        ("transformers", lambda o: o.versions.transformers, True),
    ]
    columns = [Column(heading="run", parts=("run",), is_text=True)]
    columns += [Column(heading=name, parts=(name,), is_text=is_text) for name, _, is_text in fields]
    rows = [
        Row(cells=(text_cell(origin.run), *(_origin_cell(read(origin)) for _, read, _ in fields)))
        for origin in analysis.origins
    ]
    runs = Table(
        key="runs",
        title="Runs",
        columns=tuple(columns),
        rows=tuple(rows),
        caption=(
            "Hashes are SHA-256; the first 12 digits here, all in the CSV. Seconds of training, of its last call.",
        ),
    )
    return [runs, _data_table(analysis)]


def _data_table(analysis: Analysis) -> Table:
    runs: dict[tuple[str, str, str, str], list[str]] = {}
    for origin in analysis.origins:
        for code, sha in origin.data_sha256.items():
            runs.setdefault((origin.task, code, sha, ", ".join(origin.data_source)), []).append(origin.run)
    headings = ("task", "language", "hash", "source", "runs")
    return Table(
        key="data",
        title="Rows evaluated",
        columns=tuple(Column(heading=name, parts=(name,), is_text=name != "runs") for name in headings),
        rows=tuple(
            Row(
                cells=(
                    text_cell(task_name(task)),
                    text_cell(code),
                    _origin_cell(sha),
                    text_cell(source),
                    Cell(text=str(len(names)), values=(len(names),)),
                )
            )
            for (task, code, sha, source), names in runs.items()
        ),
    )


def _origin_cell(value: object) -> Cell:
    if value is None:
        return Cell(text=NOTHING, values=(None,))
    if isinstance(value, float):
        return Cell(text=f"{value:.0f}", values=(value,))
    if isinstance(value, int):
        return Cell(text=str(value), values=(value,))
    text = str(value)
    return Cell(text=text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text, values=(text,))


def _accuracy_table(
    task: TaskAnalysis, main: str | None, shown: Sequence[SetUp], *, key: str, title: str, caption: str
) -> Table:
    columns = [
        LANGUAGE,
        Column(heading="n", parts=("n",)),
        Column(heading="majority", parts=("majority",)),
        *(_accuracy_column(s, task) for s in shown),
    ]

    def line(row: LanguageRow | AverageRow) -> Row:
        head, *_, n = _heads(row, task)
        cells = [head, n, Cell(text=percent(row.majority), values=(row.majority,))]
        cells += [_accuracy_cell(row.accuracies.get(s.name), task) for s in shown]
        return Row(cells=tuple(cells), is_average=isinstance(row, AverageRow))

    return Table(
        key=slug(task.task, task.method, key),
        title=f"{_title(task)}: {title}",
        columns=tuple(columns),
        rows=tuple(line(row) for row in lines_of(task, main)),
        caption=("Accuracy in percent with its 95 % bootstrap interval.", caption, *_unreadable_caption(task)),
    )


def _title(task: TaskAnalysis) -> str:
    return f"{task_name(task.task)}, {METHODS[task.method]}"


def _heads(row: LanguageRow | AverageRow, task: TaskAnalysis) -> list[Cell]:
    """Return the cells for language, seen, class and n."""
    n = Cell(text=str(row.n), values=(row.n,))
    if isinstance(row, AverageRow):
        small = f"{len(row.languages)} language{'' if len(row.languages) == 1 else 's'}"
        head = Cell(text=row.name, small=small, values=(row.name, None, None))
        return [head, Cell(text="", values=(None,)), Cell(text="", values=(None,)), n]
    small = " · ".join(part for part in (row.code, row.script) if part)
    head = Cell(text=short_name(row, task), small=small, values=(row.name, row.code, row.script))
    seen = Cell(
        text="unknown" if row.seen is None else "seen" if row.seen else "",
        values=(None if row.seen is None else str(row.seen).lower(),),
    )
    known = row.resource is not None and row.resource < len(RESOURCES)
    resource = Cell(text=str(row.resource) if known else NOTHING, values=(row.resource,))
    return [head, seen, resource, n]


def _accuracy_column(set_up: SetUp, task: TaskAnalysis) -> Column:
    seeds = len(set_up.seeds)
    same_layer = [other for other in sweep(task) if other.layer == set_up.layer]
    name = f"layer {set_up.layer}" if same_layer == [set_up] else set_up_name(set_up.name)
    reference = ", reference" if set_up.name == task.reference else ""
    heading = f"{name} ({seeds} seed{'' if seeds == 1 else 's'}{reference})"
    return Column(heading=heading, parts=tuple(f"{set_up.name}: {part}" for part in ACCURACY))


def has_unreadable(task: TaskAnalysis) -> bool:
    """Whether the page tells how many answers could not be read: always of generated text, else if there are any."""
    return task.method == "generate" or any(
        found.unreadable for row in task.languages for found in row.accuracies.values()
    )


def _unreadable_caption(task: TaskAnalysis) -> tuple[str, ...]:
    what = "that are none of the task's" if task.method == "generate" else "whose log-probabilities were no numbers"
    found = f"Unreadable: answers {what}, in percent; they count as wrong."
    return (found,) if has_unreadable(task) else ()


def _accuracy_cell(found: Accuracy | None, task: TaskAnalysis) -> Cell:
    if found is None:
        return NO_ACCURACY
    small = f"{percent(found.low)} to {percent(found.high)}"
    if has_unreadable(task):
        small += f"; {percent(found.unreadable)} unreadable"
    return Cell(text=percent(found.mean), small=small, values=(found.mean, found.low, found.high, found.unreadable))


def _difference_cells(found: Difference | None) -> Iterable[Cell]:
    if found is None:
        return [Cell(text=NOTHING, values=(None,) * count) for count in (5, 2, 2)]
    kind = verdict(found, adjusted=found.p_bootstrap_holm)
    return [
        Cell(
            text=points(found.mean),
            small=interval(found.low, found.high),
            values=(found.mean, found.low, found.high, found.wins, found.losses),
            mark="" if kind == "open" else kind,
        ),
        _p_cell(found.p_bootstrap, found.p_bootstrap_holm),
        _p_cell(found.p_mcnemar, found.p_mcnemar_holm),
    ]


def _p_cell(p: float | None, holm: float | None) -> Cell:
    small = "" if holm is None else f"Holm {probability(holm)}"
    return Cell(text=probability(p), small=small, values=(p, holm))
