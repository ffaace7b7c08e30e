"""Charts show what the analysis says, in its order."""

import re
import xml.etree.ElementTree as ET

import pytest

from layerbridge.colour import shade
from layerbridge.reporting.charts import (
    colour_in,
    curves,
    forests,
    heat_map,
    layer_lines,
    layer_map,
    set_up_colour,
    weight_bars,
)
from layerbridge.reporting.figures import INK, SOFT, clean
from layerbridge.reporting.views import short_name
from layerbridge.reporting.weights import mixtures
from layerbridge.reporting.wording import set_up_name
from tests.reporting.sample import BRIDGES, MAIN, make_analysis, make_task

SVG = "{http://www.w3.org/2000/svg}"


def texts(figure):
    return ["".join(item.itertext()) for item in ET.fromstring(figure.svg).iter(f"{SVG}text")]


def marks(figure, group):
    """Return the places of a line's marks."""
    root = ET.fromstring(figure.svg)
    (found,) = [item for item in root.iter(f"{SVG}g") if item.get("id") == group]
    return [(float(use.get("x")), float(use.get("y"))) for use in found.iter(f"{SVG}use")]


def test_a_forest_lists_languages_by_gain_and_averages_last():
    task = make_task(codes=("en", "si", "ta", "ar", "th"), sweep=False)
    ranked = sorted(task.languages, key=lambda row: -row.differences[MAIN].mean)
    main, other, _ = forests(task, MAIN)
    names = [short_name(row, task) + (" *" if row.seen else "") for row in ranked]
    for figure in (main, other):
        shown = [text for text in texts(figure) if text in {*names, "average", "zero-shot average"}]
        assert shown == [*names, "average", "zero-shot average"]
    assert "Transformer Softmax" in main.title
    assert "largest gain on top" in main.says
    assert "in the order of Transformer Softmax" in other.says


def test_a_forests_marks_lie_where_the_differences_are():
    task = make_task(codes=("en", "si", "ta", "ar", "th"), sweep=False)
    main = forests(task, MAIN)[0]
    root = ET.fromstring(main.svg)
    places = [
        (float(use.get("x")), float(use.get("y")))
        for group in root.iter(f"{SVG}g")
        if re.fullmatch(r"line2d_\d+", group.get("id", "")) and "clip-path" in str(ET.tostring(group))
        for use in group.iter(f"{SVG}use")
    ]
    rows = [*sorted(task.languages, key=lambda row: -row.differences[MAIN].mean), *task.averages]
    places = [place for place in places if place[1] < 400][-len(rows) :]
    assert len(places) == len(rows)
    values = [row.differences[MAIN].mean for row in rows]
    scale = (places[0][0] - places[4][0]) / (values[0] - values[4])
    assert [x for x, _ in places] == pytest.approx([places[0][0] + scale * (v - values[0]) for v in values], abs=0.01)
    assert [y for _, y in places] == sorted(y for _, y in places)


def test_marks_of_languages_seen_in_training_are_explained():
    task = make_task(codes=("en", "si", "ta"))
    assert all("* and hollow: seen in training." in figure.says for figure in forests(task, MAIN))
    assert "*: seen in training." in layer_map(task, MAIN).says
    unseen = task.model_copy(update={"languages": task.languages[1:]})
    assert not any("seen" in figure.says for figure in (*forests(unseen, MAIN), layer_map(unseen, MAIN)))
    assert all("not adjusted for the number of languages" in figure.says for figure in forests(task, MAIN))


def test_a_bridge_has_one_colour_everywhere_and_the_layer_sweep_no_learning_curve():
    analysis = make_analysis()
    colours = {name: set_up_colour(analysis.tasks[0], name) for name in BRIDGES}
    assert len(set(colours.values())) == len(BRIDGES)
    loss, dev = curves(analysis.model_copy(update={"curves": analysis.curves[::-1]}), "sib200")
    for figure in (loss, dev):
        assert "layer 3" not in texts(figure)
        assert [text for text in texts(figure) if text in map(set_up_name, BRIDGES)] == [*map(set_up_name, BRIDGES)]
        for name in BRIDGES:
            assert f"stroke: {colours[name]}" in figure.svg
    (mixture,) = [m for m in mixtures(analysis) if m.set_up == "global_softmax_published"]
    bars = weight_bars(mixture, colour_in(analysis, mixture.task, mixture.set_up))
    assert f"fill: {colours['global_softmax_published']}" in bars.svg
    assert colour_in(analysis, "sib200", "layer-3") == SOFT


def test_a_dot_is_explained_where_there_are_several_runs():
    analysis = make_analysis()
    several = next(m for m in mixtures(analysis) if m.is_global)
    (one,) = mixtures(analysis.model_copy(update={"weights": analysis.weights[:1]}))
    assert weight_bars(several, SOFT).says.endswith("A dot is one run.")
    assert "dot" not in weight_bars(one, SOFT).says


def test_a_task_without_a_layer_sweep_has_no_charts_of_it():
    task = make_task(codes=("en", "si"), sweep=False)
    assert layer_lines(task, MAIN) is None
    assert layer_map(task, MAIN) is None


def test_the_layer_chart_names_its_lines():
    shown = texts(layer_lines(make_task(codes=("en", "si", "ta")), MAIN))
    for wanted in ("zero-shot average", "majority", "last layer, zero-shot average", "English, seen"):
        assert wanted in shown


def test_a_heat_map_has_each_value_in_its_colour():
    figure = heat_map(
        [[0.0, 0.5], [1.0, None]], ["a", "b"], ["1", "2"], key="k", title="t", says="something", across="layer"
    )
    assert [text for text in texts(figure) if text in ("0", "50", "100")] == ["0", "50", "100"]
    assert all(f"fill: {shade(value)}" in figure.svg for value in (0.0, 0.5, 1.0))


def test_a_heat_map_of_many_layers_leaves_the_numbers_to_its_table():
    values = [[i / 24 for i in range(24)]]
    figure = heat_map(values, ["a"], [str(i) for i in range(24)], key="k", title="t", says="s", across="layer")
    assert "38" not in texts(figure)


def test_a_drawing_in_a_page_has_its_own_ids_and_the_pages_colours():
    figure, *_ = forests(make_task(codes=("en", "si"), sweep=False), MAIN)
    ids = re.findall(r'\bid="([^"]+)"', figure.inline)
    assert ids
    assert all(name.startswith(figure.key) for name in ids)
    assert f"var(--ink, {INK})" in figure.inline
    assert INK in figure.svg


def test_what_xml_cannot_hold_is_left_out():
    assert clean("a\x00b\ud800c\uffffd\n෴") == "abcd\n෴"
