"""Pages: what they say is worked out here, how they look is in `templates/`. Every text is escaped by jinja2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from layerbridge.analysis import Analysis, TaskAnalysis, TokenWeights
from layerbridge.colour import shade
from layerbridge.errors import ConfigError
from layerbridge.reporting.charts import colour_in, curves, forests, layer_lines, layer_map, weight_bars, weight_maps
from layerbridge.reporting.figures import Figure
from layerbridge.reporting.tables import Table
from layerbridge.reporting.views import (
    baseline_table,
    compared,
    language_table,
    main_set_up,
    origin_tables,
    power_table,
    slug,
    sweep_table,
)
from layerbridge.reporting.weights import ColouredTexts, Mixture, colour_texts, mixtures, weights_table
from layerbridge.reporting.wording import (
    METHODS,
    Sentence,
    describe_models,
    describe_task,
    heading,
    power,
    say,
    set_up_name,
    task_name,
    with_names,
)

SCALE_STOPS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskView:
    """One task read one way, as the page shows it."""

    key: str
    name: str
    task: TaskAnalysis
    about: str
    notes: tuple[str, ...]
    main: str | None
    main_forest: Figure | None
    other_forests: tuple[Figure, ...]
    layer_figures: tuple[Figure, ...]
    languages: Table | None
    baselines: Table | None
    layers: Table | None
    power: Table | None
    powers: tuple[str, ...]
    """What the averages can show, in words."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All charts."""
        return (*([self.main_forest] if self.main_forest else []), *self.other_forests, *self.layer_figures)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables."""
        return tuple(t for t in (self.languages, self.baselines, self.layers, self.power) if t)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureView:
    """One set-up's layer weights, as the page shows them."""

    mixture: Mixture
    figures: tuple[Figure, ...]
    table: Table
    texts: ColouredTexts | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportView:
    """All of a report, ready for its template and its files."""

    analysis: Analysis
    title: str
    notes: tuple[str, ...]
    """Of the whole."""
    sentences: tuple[Sentence, ...]
    models: str
    """Between which the bridges of the first claim stand."""
    tasks: tuple[TaskView, ...]
    mixtures: tuple[MixtureView, ...]
    curves: tuple[tuple[str, tuple[Figure, ...]], ...]
    origins: tuple[Table, ...]

    @property
    def figures(self) -> list[Figure]:
        """All charts, in the page's order."""
        parts = [*(t.figures for t in self.tasks), *(m.figures for m in self.mixtures), *(c for _, c in self.curves)]
        return [figure for part in parts for figure in part]

    @property
    def tables(self) -> list[Table]:
        """All tables, in the page's order."""
        return [*(t for view in self.tasks for t in view.tables), *(m.table for m in self.mixtures), *self.origins]


def view_report(analysis: Analysis) -> ReportView:
    """Work out everything that a report shows."""
    names = [set_up.name for task in analysis.tasks for set_up in task.set_ups]
    claimed = [(claim.task, claim.method) for claim in analysis.claims[:1]]
    return ReportView(
        analysis=analysis,
        title=heading(analysis),
        notes=tuple(with_names(note, names) for note in analysis.notes),
        sentences=tuple(map(say, analysis.claims)),
        models=next((describe_models(task) for task in analysis.tasks if (task.task, task.method) in claimed), ""),
        tasks=tuple(_view_task(analysis, task) for task in analysis.tasks),
        mixtures=tuple(_view_mixture(analysis, mixture) for mixture in mixtures(analysis)),
        curves=tuple(
            (task_name(task), figures)
            for task in dict.fromkeys(curve.task for curve in analysis.curves)
            if (figures := tuple(curves(analysis, task)))
        ),
        origins=tuple(origin_tables(analysis)),
    )


def render_report(view: ReportView) -> str:
    """Return the report as one HTML page."""
    return _render("report.html", {"view": view, "analysis": view.analysis})


def render_text(sentence: TokenWeights, layer_numbers: Sequence[int], *, run: str, about: str = "") -> str:
    """Return one text, coloured by the layers that its tokens draw on, as a small self-contained HTML page.

    Args:
        sentence: the text with its tokens and their weights; `language` may be empty.
        layer_numbers: the encoder's numbers of the layers.
        run: where the weights came from.
        about: such as the fusion's name.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    texts = colour_texts([sentence], layer_numbers, title=about, run=run)
    return _render("text.html", {"texts": texts, "sentence": sentence, "layer_numbers": layer_numbers, "about": about})


def _view_task(analysis: Analysis, task: TaskAnalysis) -> TaskView:
    main = main_set_up(analysis, task)
    gains = forests(task, main)
    return TaskView(
        key=slug(task.task, task.method),
        name=f"{task_name(task.task)}, {METHODS[task.method]}",
        task=task,
        about=describe_task(task),
        notes=tuple(with_names(note, [set_up.name for set_up in task.set_ups]) for note in task.notes),
        main=main,
        main_forest=gains[0] if gains else None,
        other_forests=tuple(gains[1:]),
        layer_figures=tuple(figure for figure in (layer_lines(task, main), layer_map(task, main)) if figure),
        languages=language_table(task, main),
        baselines=baseline_table(task, main),
        layers=sweep_table(task, main),
        power=power_table(task, main),
        powers=tuple(
            f"{set_up_name(name)}, {row.name}: {power(row.differences[name])}."
            for row in task.averages
            for name in compared(task)
            if name in row.differences
        ),
    )


def _view_mixture(analysis: Analysis, mixture: Mixture) -> MixtureView:
    figures: list[Figure] = []
    texts = None
    if mixture.is_global:
        colour = colour_in(analysis, mixture.task, mixture.set_up)
        figures = [] if mixture.is_one_layer else [weight_bars(mixture, colour)]
    else:
        figures = weight_maps(mixture)
        first = next((run for run in mixture.runs if run.sentences), None)
        if first is not None:
            texts = colour_texts(first.sentences, mixture.layer_numbers, title=mixture.title, run=first.run)
    return MixtureView(mixture=mixture, figures=tuple(figures), table=weights_table(mixture), texts=texts)


def _render(name: str, values: Mapping[str, Any]) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ConfigError("Pages need jinja2, which is not installed: pip install 'layerbridge[study]'") from None
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("layerbridge.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Drawings are matplotlib's, which escapes what is written in them.
    environment.filters["drawing"] = lambda figure: Markup(figure.inline)
    environment.globals["scale"] = ", ".join(shade(i / (SCALE_STOPS - 1)) for i in range(SCALE_STOPS))
    environment.globals["shade"] = shade
    environment.globals["look"] = Markup(
        resources.files("layerbridge").joinpath("look.css").read_text(encoding="utf-8")
    )
    return environment.get_template(name).render(values)
