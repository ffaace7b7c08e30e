"""The report's charts. All are drawn by matplotlib as vectors, letters as text.

Widths are for a phone; a chart of languages grows with them in height.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from layerbridge.analysis import Analysis, AverageRow, LanguageRow, LearningCurve, TaskAnalysis
from layerbridge.colour import INK as SCALE_INK
from layerbridge.colour import SET_UP_COLOURS, shade
from layerbridge.reporting.figures import GRID, INK, PAPER, SOFT, Figure, canvas, clean, finish
from layerbridge.reporting.views import compared, lines_of, short_name, slug, sweep
from layerbridge.reporting.weights import NUM_TEXTS, Mixture, language_name
from layerbridge.reporting.wording import METHODS, percent, points, script_name, set_up_name, task_name

ROW = 13.5
"""Points of height that a language takes."""
MARGIN = 62.0
"""Points for the axis and its label."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def forests(task: TaskAnalysis, main: str | None) -> list[Figure]:
    """Return one chart for each bridge: its difference to the reference by language, in the order of `main`'s gain.

    All have the same axis. The main one comes first.
    """
    names = sorted(compared(task), key=lambda name: name != main)
    rows = lines_of(task, main)
    found = [row.differences[name] for row in rows for name in names if name in row.differences]
    if not found:
        return []
    low, high = 100 * min(0.0, *(d.low for d in found)), 100 * max(0.0, *(d.high for d in found))
    room = 0.04 * (high - low) or 1.0
    return [_forest(task, name, rows, (low - room, high + room), order=names[0]) for name in names]


def _forest(
    task: TaskAnalysis, name: str, rows: Sequence[LanguageRow | AverageRow], limits: tuple[float, float], *, order: str
) -> Figure:
    colour = set_up_colour(task, name)
    height = ROW * (len(rows) + 1) + MARGIN
    ticks, labels = [], []
    with canvas(height) as (drawing, axes):
        axes.axvline(0, color=SOFT, linewidth=0.8)
        for i, row in enumerate(rows):
            is_average = isinstance(row, AverageRow)
            y = i + 0.8 * is_average
            ticks.append(y)
            labels.append(_row_label(row, task))
            difference = row.differences.get(name)
            if difference is None:
                continue
            axes.plot([100 * difference.low, 100 * difference.high], [y, y], color=colour, linewidth=1.3)
            is_seen = isinstance(row, LanguageRow) and bool(row.seen)
            axes.plot(
                [100 * difference.mean], [y], marker="D" if is_average else "o", markersize=5 if is_average else 4.5,
                markerfacecolor=PAPER if is_seen else colour, markeredgecolor=colour, linestyle="none",
            )  # fmt: skip
        if task.averages:
            axes.axhline(len(rows) - len(task.averages) - 0.1, color=GRID, linewidth=0.8)
        axes.set_yticks(ticks, labels)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(ticks[-1] + 0.7, -0.7)
        axes.set_xlim(*limits)
        axes.grid(axis="x")
        reference = set_up_name(str(task.reference))
        axes.set_xlabel(f"points over {_short(reference)}, 95 % interval")
        title = f"{task_name(task.task)}, {METHODS[task.method]}: {set_up_name(name)} − {reference}"
        averages = ", ".join(
            f"{row.name} {points(row.differences[name].mean)}" for row in task.averages if name in row.differences
        )
        sorting = "the largest gain on top" if name == order else f"in the order of {set_up_name(order)}"
        seen = " * and hollow: seen in training." if any(row.seen for row in task.languages) else ""
        return finish(
            drawing,
            key=slug(task.task, task.method, "gain", name),
            title=title,
            says=f"Points by language with 95 % intervals, not adjusted for the number of languages, {sorting}"
            f"{averages and f'; {averages}'}.{seen}",
        )


def layer_lines(task: TaskAnalysis, main: str | None) -> Figure | None:
    """Return accuracy by layer: seen languages, the zero-shot average, the majority, and the bridges' levels."""
    layers = sweep(task)
    if not layers:
        return None
    zero_shot = next((row for row in task.averages if row.name == "zero-shot average"), None)
    average = zero_shot or next(iter(task.averages), None)
    seen = [row for row in task.languages if row.seen]
    with canvas(270) as (drawing, axes):
        if average is not None:
            shown = [s for s in layers if s.name in average.accuracies]
            x = [s.layer for s in shown]
            each = [average.accuracies[s.name] for s in shown]
            axes.fill_between(x, [100 * a.low for a in each], [100 * a.high for a in each], color=INK, alpha=0.12, lw=0)
            axes.plot(x, [100 * a.mean for a in each], color=INK, marker="o", markersize=4, label=average.name)
            axes.axhline(100 * average.majority, color=SOFT, linewidth=1, linestyle=(0, (1, 2)), label="majority")
            for i, name in enumerate(s.name for s in task.set_ups if s.group == "bridge"):
                if name in average.accuracies:
                    level = 100 * average.accuracies[name].mean
                    label = f"{_short(set_up_name(name))}, {average.name}"
                    style = DASHES[i % len(DASHES)]
                    axes.axhline(level, color=set_up_colour(task, name), linewidth=1.3, linestyle=style, label=label)
        if seen:
            shown = [s for s in layers if all(s.name in row.accuracies for row in seen)]
            y = [100 * sum(row.accuracies[s.name].mean for row in seen) / len(seen) for s in shown]
            label = short_name(seen[0], task) if len(seen) == 1 else f"mean of {len(seen)} languages"
            axes.plot(
                [s.layer for s in shown], y, color=SOFT, marker="s", markersize=3.5, label=f"{_short(label)}, seen"
            )
        axes.set_xticks([s.layer for s in layers])
        axes.set_xlabel("encoder layer, used alone")
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="y")
        drawing.legend(loc="outside lower center", ncols=1, handlelength=2.6)
        return finish(
            drawing,
            key=slug(task.task, task.method, "layers"),
            title=f"{task_name(task.task)}, {METHODS[task.method]}: accuracy by layer",
            says=_say_layers(layers, average),
        )


def _say_layers(layers: Sequence[Any], average: AverageRow | None) -> str:
    if average is None:
        return "Accuracy of each encoder layer used alone."
    each = [f"{s.layer}: {percent(average.accuracies[s.name].mean)}" for s in layers if s.name in average.accuracies]
    return f"Accuracy in percent of each encoder layer used alone, {average.name}: {', '.join(each)}."


def layer_map(task: TaskAnalysis, main: str | None) -> Figure | None:
    """Return a heat map of accuracy, languages x single layers."""
    layers = sweep(task)
    if not layers:
        return None
    rows = lines_of(task, main)
    values = [[row.accuracies[s.name].mean if s.name in row.accuracies else None for s in layers] for row in rows]
    return heat_map(
        values,
        [_row_label(row, task) for row in rows],
        [str(s.layer) for s in layers],
        key=slug(task.task, task.method, "layer-map"),
        title=f"{task_name(task.task)}, {METHODS[task.method]}: accuracy by language and layer, %",
        says="Accuracy of each encoder layer used alone, by language; the table beside it has the numbers."
        + (" *: seen in training." if any(row.seen for row in task.languages) else ""),
        across="encoder layer, used alone",
    )


def weight_bars(mixture: Mixture, colour: str) -> Figure:
    """Return a global fusion's weights as bars: mean over runs, a dot for each run."""
    runs = mixture.by_run()
    mean = [sum(column) / len(runs) for column in zip(*runs, strict=True)]
    places = range(len(mean))
    with canvas(170) as (drawing, axes):
        axes.bar(places, [100 * value for value in mean], color=colour, width=0.72)
        for run in runs if len(runs) > 1 else ():
            axes.plot(places, [100 * v for v in run], linestyle="none", marker="o", markersize=3,
                      markerfacecolor=PAPER, markeredgecolor=INK, markeredgewidth=0.7)  # fmt: skip
        _label_layers(axes, mixture.layer_numbers)
        axes.set_xlabel("encoder layer")
        axes.set_ylabel("weight, %")
        axes.grid(axis="y")
        each = ", ".join(f"{n}: {percent(w)}" for n, w in zip(mixture.layer_numbers, mean, strict=True))
        return finish(
            drawing, key=mixture.key, title=f"{mixture.title}: weight of each layer",
            says=f"Weights in percent, layer by layer: {each}.{' A dot is one run.' if len(runs) > 1 else ''}",
        )  # fmt: skip


def weight_maps(mixture: Mixture) -> list[Figure]:
    """Return a token-wise fusion's mean weights as heat maps: by language and by script."""
    columns = [str(n) for n in mixture.layer_numbers]
    parts = [
        ("language", {language_name(code).partition(" (")[0]: mean for code, mean in mixture.by_language.items()}),
        ("script", {script_name(code): mean for code, mean in mixture.by_script.items()}),
    ]
    return [
        heat_map(
            [list(mean) for mean in means.values()],
            list(means),
            columns,
            key=f"{mixture.key}-{part}",
            title=f"{mixture.title}: weights by {part}, %",
            says=f"Mean weight of each layer over tokens of the first {NUM_TEXTS} texts of each language, by {part}.",
            across="encoder layer",
        )
        for part, means in parts
        if len(means) > (part == "script")
    ]


def heat_map(
    values: Sequence[Sequence[float | None]],
    names: Sequence[str],
    columns: Sequence[str],
    *,
    key: str,
    title: str,
    says: str,
    across: str,
) -> Figure:
    """Return fractions (rows x columns) as coloured cells with their percentages, while they fit."""
    known = [value for row in values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    span = high - low or 1.0
    has_room = len(columns) <= 13
    with canvas(ROW * len(values) + MARGIN) as (drawing, axes):
        from matplotlib.patches import Rectangle

        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value is None:
                    continue
                fill = shade((value - low) / span)
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=0.8))
                if has_room:
                    text = f"{100 * value:.0f}"
                    axes.text(j, i, text, ha="center", va="center_baseline", fontsize=8, color=SCALE_INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [_short(name, 24) for name in names])
        step = 1 if len(columns) <= 16 else 4
        axes.set_xticks(range(0, len(columns), step), list(columns)[::step])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(f"{across} (palest {100 * low:.0f} %, deepest {100 * high:.0f} %)")
        return finish(drawing, key=key, title=title, says=says)


def curves(analysis: Analysis, task: str) -> list[Figure]:
    """Return training loss and dev accuracy by step: a thin line a seed, a colour a set-up. Without the layer sweep."""
    swept = {s.name for found in analysis.tasks if found.task == task for s in sweep(found)}
    order = [s.name for table in analysis.tasks if table.task == task for s in table.set_ups]
    found = [curve for curve in analysis.curves if curve.task == task and curve.set_up not in swept]
    found.sort(key=lambda curve: order.index(curve.set_up) if curve.set_up in order else len(order))
    names = list(dict.fromkeys(curve.set_up for curve in found))
    colours = {name: colour_in(analysis, task, name) for name in names}
    parts = (("train_loss", "training loss", 1.0), ("dev_accuracy", "dev accuracy, %", 100.0))
    return [
        _curve_chart([curve for curve in found if getattr(curve, field)], field, label, factor, colours, task)
        for field, label, factor in parts
        if any(getattr(curve, field) for curve in found)
    ]


def _curve_chart(
    found: Sequence[LearningCurve], field: str, label: str, factor: float, colours: Mapping[str, str], task: str
) -> Figure:
    shown = [name for name in colours if any(curve.set_up == name for curve in found)]
    with canvas(200 + 12 * len(shown)) as (drawing, axes):
        labelled = set()
        for curve in found:
            name = curve.set_up
            line = getattr(curve, field)
            style = DASHES[list(colours).index(name) % len(DASHES)]
            axes.plot(
                [point.step for point in line], [factor * point.value for point in line], color=colours[name],
                linewidth=0.9, linestyle=style, marker="." if len(line) == 1 else None,
                label=None if name in labelled else _short(set_up_name(name)),
            )  # fmt: skip
            labelled.add(name)
            chosen = [p for p in line if p.step == curve.selected_step and field == "dev_accuracy"]
            axes.plot([p.step for p in chosen], [factor * p.value for p in chosen], linestyle="none", marker="o",
                      markersize=3.5, markerfacecolor=colours[name], markeredgecolor=PAPER)  # fmt: skip
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        drawing.legend(loc="outside lower center", ncols=1, handlelength=2.6)
        dot = " A dot is the checkpoint that was kept." if field == "dev_accuracy" else ""
        return finish(
            drawing, key=slug(task, field.replace("_", "-")), title=f"{task_name(task)}: {label} by step",
            says=f"A thin line is one seed; colours and dashes are set-ups: {', '.join(map(set_up_name, shown))}.{dot}",
        )  # fmt: skip


def set_up_colour(task: TaskAnalysis, name: str) -> str:
    """Return a bridge's colour, the same in all charts of a task."""
    bridges = [s.name for s in task.set_ups if s.group == "bridge"]
    return SET_UP_COLOURS[bridges.index(name) % len(SET_UP_COLOURS)]


def colour_in(analysis: Analysis, task: str, name: str) -> str:
    """Return a bridge's colour in the charts of a task; grey: the task has no such bridge."""
    tables = [found for found in analysis.tasks if found.task == task]
    having = (t for t in tables if any(s.name == name and s.group == "bridge" for s in t.set_ups))
    return next((set_up_colour(found, name) for found in having), SOFT)


def _row_label(row: LanguageRow | AverageRow, task: TaskAnalysis) -> str:
    if isinstance(row, AverageRow):
        return row.name
    return _short(short_name(row, task), 24) + (" *" if row.seen else "")


def _label_layers(axes: Any, numbers: Sequence[int]) -> None:
    step = 1 if len(numbers) <= 16 else 4
    axes.set_xticks(range(0, len(numbers), step), [str(n) for n in numbers][::step])


def _short(text: str, length: int = 34) -> str:
    """Cut a name that would leave no room for the chart."""
    text = " ".join(clean(text).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
