"""Layer weights put together: means over runs and tokens, and colours that do not blow up nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.analysis import LanguageWeights, LayerWeights, SetUpWeights, TokenWeights
from layerbridge.colour import shade
from layerbridge.evaluation.weights import MAX_TEXTS
from layerbridge.model.fusion import FUSIONS
from layerbridge.reporting.page import render_report, view_report
from layerbridge.reporting.weights import GLOBAL, MIN_SPAN, NUM_TEXTS, colour_texts, mixtures, scale, weights_table
from tests.reporting.sample import make_analysis


def run_weights(seed=0, *, fusion="transformer_softmax", **languages):
    return LayerWeights(
        run=f"run{seed}", fusion=fusion, seed=seed, task="t", layer_numbers=(1, 2), sentences=(),
        languages={code: LanguageWeights(num_tokens=n, mean=(w, 1 - w)) for code, (n, w) in languages.items()},
    )  # fmt: skip


def mixed(*runs):
    weights = tuple(SetUpWeights(set_up="mine", weights=run) for run in runs)
    (mixture,) = mixtures(make_analysis().model_copy(update={"weights": weights}))
    return mixture


def test_runs_of_a_set_up_are_averaged_by_language():
    mixture = mixed(run_weights(0, si=(10, 0.2), ta=(10, 0.4)), run_weights(1, si=(99, 0.4)))
    assert mixture.by_language["si"] == pytest.approx((0.3, 0.7))
    assert mixture.by_language["ta"] == pytest.approx((0.4, 0.6))
    assert not mixture.is_global


def test_a_script_is_the_mean_over_the_tokens_of_its_languages():
    mixture = mixed(run_weights(0, hi=(30, 0.2), mr=(10, 0.6), si=(5, 0.5), xx=(5, 0.9)))
    assert mixture.by_script == {"Deva": pytest.approx((0.3, 0.7)), "Sinh": pytest.approx((0.5, 0.5))}


def test_a_fusion_with_the_same_weights_for_all_tokens_is_global_though_runs_differ():
    each = {"fusion": "global_softmax_published"}
    mixture = mixed(run_weights(0, hi=(3, 0.2), si=(5, 0.2), **each), run_weights(1, hi=(3, 0.6), si=(5, 0.6), **each))
    assert mixture.is_global
    assert not mixture.is_one_layer
    assert mixture.by_run() == [pytest.approx((0.2, 0.8)), pytest.approx((0.6, 0.4))]
    assert mixed(run_weights(0, hi=(3, 1.0), si=(5, 1.0))).is_one_layer


def test_a_fusion_by_tokens_on_one_language_is_not_called_global():
    assert not mixed(run_weights(0, si=(5, 0.2))).is_global
    analysis = make_analysis().model_copy(
        update={"weights": (SetUpWeights(set_up="mine", weights=run_weights(0, si=(5, 0.2))),)}
    )
    assert "One set of weights for every token" not in render_report(view_report(analysis))


def test_every_fusion_is_known_to_be_global_or_by_tokens():
    assert set(GLOBAL) < set(FUSIONS)
    assert {"transformer_softmax", "attention_pool"}.isdisjoint(GLOBAL)


def test_the_number_of_texts_told_is_the_number_read():
    assert NUM_TEXTS == MAX_TEXTS
    assert (
        "the first 32 texts of each language, and over 1 run."
        in weights_table(mixed(run_weights(si=(1, 0.5)))).caption[0]
    )


def test_a_run_that_has_no_weights_counts_for_nothing():
    assert len(mixed(run_weights(0, si=(1, 0.5)), run_weights(1)).runs) == 1


def test_the_table_has_the_weights_unrounded():
    table = weights_table(mixed(run_weights(0, si=(3, 1 / 3))))
    assert [cell.values[0] for cell in table.rows[0].cells] == ["Sinhala", 1 / 3, 1 - 1 / 3]


def test_colours_span_what_is_used_but_never_less_than_a_layer():
    assert scale([2.0, 5.5], range(1, 9)) == (2.0, 5.5)
    low, high = scale([4.01, 4.02], range(1, 9))
    assert high - low == pytest.approx(MIN_SPAN)
    assert low < 4.01 < 4.02 < high
    assert scale([], (3, 9)) == (3.0, 9.0)


@given(st.lists(st.floats(1, 8), min_size=1), st.integers(1, 8))
def test_the_scale_ends_at_layers_that_there_are_and_holds_what_is_used(means, last):
    means = [min(mean, last) for mean in means]
    low, high = scale(means, range(1, last + 1))
    assert 1 <= low <= min(means) <= max(means) <= high <= last
    assert high - low >= min(MIN_SPAN, last - 1) - 1e-9


def test_a_deeper_layer_is_a_deeper_colour():
    sentence = TokenWeights(language="en", text="a b", tokens=("▁a", "▁b"), weights=((1.0, 0.0), (0.0, 1.0)))
    (text,) = colour_texts([sentence], (1, 12), title="t", run="r").texts
    assert [piece.colour for piece in text.pieces] == [shade(0), shade(1)]
    assert text.pieces[1].says == "▁b: mean layer 12.00 (layer 1: 0 %, 12: 100 %)"


def test_a_language_that_no_table_knows_takes_the_direction_of_its_letters():
    sentence = TokenWeights(language="xx", text="a", tokens=("a",), weights=((1.0,),))
    (text,) = colour_texts([sentence], (1,), title="t", run="r").texts
    assert (text.language, text.direction) == ("xx", "auto")
