"""A claim says what its numbers say, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.analysis import Claim, Difference
from layerbridge.languages import all_languages
from layerbridge.reporting.wording import SCRIPTS, interval, percent, points, probability, say, script_name


def claim(mean=0.012, low=-0.003, high=0.027, p=0.12, **changes):
    difference = Difference(mean=mean, low=low, high=high, p_bootstrap=p, wins=3, losses=2, detectable=0.0214)
    options = {"task": "sib200", "method": "score", "set_up": "transformer_softmax", "reference": "last_layer"}
    options |= {"average": "zero-shot average", "num_languages": 26, "num_seeds": 5} | changes
    return Claim(difference=difference, **options)


def said(**changes):
    return str(say(claim(**changes))).replace("\u00a0", " ")


def test_a_difference_that_may_be_none_is_not_called_one():
    assert said() == (
        "SIB-200, zero-shot average of 26 languages, 5 seeds, label scoring: Transformer Softmax +1.2 points over "
        "last layer, 95 % interval −0.3 to +2.7, p = 0.12: no difference shown; these rows could have shown 2.1 points."
    )


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
