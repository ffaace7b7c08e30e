"""A claim says what its numbers say, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.analysis import Claim, Difference
from layerbridge.languages import all_languages
from layerbridge.reporting.wording import (
    SCRIPTS,
    describe_task,
    heading,
    interval,
    percent,
    points,
    probability,
    say,
    script_name,
    set_up_name,
    with_names,
)
from tests.reporting.sample import make_analysis, make_task


def claim(mean=0.012, low=-0.003, high=0.027, p=0.12, **changes):
    given = {"wins": 3, "losses": 2, "detectable": 0.0214}
    given = {name: changes.pop(name, value) for name, value in given.items()}
    difference = Difference(mean=mean, low=low, high=high, p_bootstrap=p, **given)
    options = {"task": "sib200", "method": "score", "set_up": "transformer_softmax", "reference": "last_layer"}
    options |= {"average": "zero-shot average", "num_languages": 26, "num_seeds": 5} | changes
    return Claim(difference=difference, **options)


def said(**changes):
    return str(say(claim(**changes))).replace("\u00a0", " ")


def test_a_difference_that_may_be_none_is_not_called_one():
    assert said() == (
        "SIB-200, zero-shot average of 26 languages, 5 seeds, label scoring: Transformer Softmax +1.2 points over "
        "last layer, 95 % interval −0.3 to +2.7, p = 0.12: no difference shown; a true one of 2.1 points would be "
        "shown 4 times in 5."
    )


def test_what_could_be_shown_is_not_told_where_the_rows_do_not_tell_it():
    never = said(mean=0.0, low=0.0, high=0.0, p=1.0, wins=0, losses=0, detectable=None)
    assert never.endswith("no difference shown; the two never disagreed, so these rows do not tell.")
    assert "would be shown" not in said(detectable=None)
    assert said(detectable=1.0).endswith("no difference shown; these rows and seeds are too few to show any.")


def test_a_claim_among_others_needs_its_adjusted_p_value():
    assert "p = 0.03 (Holm 0.04): better than" in said(low=0.002, p=0.03, p_holm=0.04)
    lost = said(low=0.002, p=0.03, p_holm=0.06)
    assert "p = 0.03 (Holm 0.06): no difference shown once adjusted for the other claims; a true one" in lost
    assert "no difference shown; a true" in said(p=0.12, p_holm=0.5)
    assert "(Holm < 0.001)" in said(low=0.002, p=0.0001, p_holm=0.0002)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("linear_probe_last_layer", "linear probe, last layer"),
        ("linear_probe-last_layer", "linear probe on last layer's fused states"),
        ("linear_probe-transformer_softmax", "linear probe on Transformer Softmax's fused states"),
        ("transformer_softmax [2]", "Transformer Softmax [2]"),
        ("linear_probe-last_layer [1]", "linear probe on last layer's fused states [1]"),
        ("layer-3", "layer 3"),
        ("layer-3 [2]", "layer 3 [2]"),
        ("mine [x]", "mine [x]"),
        ("a\nb", "a\nb"),
    ],
)
def test_a_set_up_is_called_by_its_name(name, shown):
    assert set_up_name(name) == shown


def test_notes_call_set_ups_and_tasks_by_their_names_and_leave_runs_and_places_alone():
    names = ["last_layer", "linear_probe_last_layer", "transformer_softmax"]
    note = "transformer_softmax is compared with last_layer in 2 pairs; linear_probe_last_layer."
    assert with_names(note, names) == (
        "Transformer Softmax is compared with last layer in 2 pairs; linear probe, last layer."
    )
    for kept in ("missing: sib200/last_layer-seed-0.", "last_layer-seed-0: texts cut", "a.last_layer"):
        assert with_names(kept, names) == kept
    assert with_names("Task sinhala_news was left out: task xnli; sib200", []) == (
        "Task Sinhala news was left out: task XNLI; sib200"
    )


def test_without_a_title_the_headline_names_the_tasks():
    analysis = make_analysis().model_copy(update={"title": ""})
    assert heading(analysis) == "Bridges compared on SIB-200 and XNLI"
    alone = analysis.model_copy(update={"tasks": analysis.tasks[:1], "claims": ()})
    assert heading(alone) == "Accuracy on SIB-200"


def test_parallel_rows_are_counted_once_and_the_models_told():
    task = make_task(codes=("en", "si", "ta"), sweep=False)
    assert "test split: 204 rows, each in 3 languages." in describe_task(task)
    assert describe_task(task).endswith(" Encoder embedded encoder, LLM embedded LM.")
    apart = task.model_copy(update={"parallel": False, "encoder": f"big@{'0123456789ab' * 3}", "llm": None})
    assert "test split: 612 rows in 3 languages." in describe_task(apart)
    assert describe_task(apart).endswith(" Encoder big@0123456789ab.")


def test_better_and_worse_need_both_the_interval_and_the_p_value():
    assert said(low=0.002, p=0.03).endswith("95 % interval +0.2 to +2.7, p = 0.03: better than last layer.")
    assert "p = 0.04: no difference shown" in said(low=-0.001, p=0.04)
    assert "no difference shown" in said(low=0.002, p=0.05)
    assert "no difference shown" in said(low=0.0, p=0.01)
    worse = said(mean=-0.02, low=-0.03, high=-0.01, p=0.0002, set_up="mine", num_seeds=1, num_languages=1)
    assert worse.endswith(
        "mine −2.0 points over last layer, 95 % interval −3.0 to −1.0, p < 0.001: worse than last layer."
    )
    assert "of 1 language, 1 seed," in worse


@given(st.floats(0, 1))
def test_a_shown_p_value_is_on_the_same_side_of_five_percent(p):
    shown = float(probability(p).removeprefix("< "))
    assert (shown < 0.05) == (p < 0.05) or probability(p) == "0.050"


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_shown_interval_ends_on_the_side_of_zero_that_it_ends_on(low, high):
    for value, text in zip((low, high), interval(low, high).replace("−", "-").split(" to "), strict=True):
        assert float(text) * value >= 0
        assert abs(float(text) - 100 * value) <= 0.051


def test_nothing_known_is_a_dash_and_no_difference_has_no_sign():
    assert (percent(None), points(None), probability(None)) == ("–", "–", "–")
    assert (points(0.0), points(-0.0001), points(0.0004, places=2)) == ("0.0", "0.0", "+0.04")


def test_every_script_of_the_table_of_languages_has_a_name():
    assert {language.script for language in all_languages()} == set(SCRIPTS)
    assert script_name("Xxxx") == "Xxxx"


@pytest.mark.parametrize("method", ["score", "generate"])
def test_the_way_of_reading_answers_is_told(method):
    assert {"score": "label scoring", "generate": "generate and match"}[method] in said(method=method)
