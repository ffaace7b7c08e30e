"""Layer weights put together: means over runs and tokens, and colours that do not blow up nothing."""

import pytest

from layerbridge.analysis import LanguageWeights, LayerWeights, SetUpWeights, TokenWeights
from layerbridge.reporting.colour import shade
from layerbridge.reporting.weights import MIN_SPAN, colour_texts, mixtures, scale, weights_table
from tests.reporting.sample import make_analysis


def run_weights(seed=0, **languages):
    return LayerWeights(
        run=f"run{seed}", fusion="transformer_softmax", seed=seed, task="t", layer_numbers=(1, 2), sentences=(),
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


def test_the_same_weights_everywhere_are_global_though_runs_differ():
    mixture = mixed(run_weights(0, hi=(3, 0.2), si=(5, 0.2)), run_weights(1, hi=(3, 0.6), si=(5, 0.6)))
    assert mixture.is_global
    assert not mixture.is_one_layer
    assert mixture.by_run() == [pytest.approx((0.2, 0.8)), pytest.approx((0.6, 0.4))]
    assert mixed(run_weights(0, hi=(3, 1.0), si=(5, 1.0))).is_one_layer


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


def test_a_deeper_layer_is_a_deeper_colour():
    sentence = TokenWeights(language="en", text="a b", tokens=("▁a", "▁b"), weights=((1.0, 0.0), (0.0, 1.0)))
    (text,) = colour_texts([sentence], (1, 12), title="t", run="r").texts
    assert [piece.colour for piece in text.pieces] == [shade(0), shade(1)]
    assert text.pieces[1].says == "▁b: mean layer 12.00 (layer 1: 0 %, 12: 100 %)"


def test_a_language_that_no_table_knows_takes_the_direction_of_its_letters():
    sentence = TokenWeights(language="xx", text="a", tokens=("a",), weights=((1.0,),))
    (text,) = colour_texts([sentence], (1,), title="t", run="r").texts
    assert (text.language, text.direction) == ("xx", "auto")
