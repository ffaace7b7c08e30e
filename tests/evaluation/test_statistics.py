"""Figures against enumeration, scipy and simulation; false positives counted under nulls that matter."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from layerbridge.evaluation.statistics import (
    bootstrap,
    bootstrap_interval,
    combine_p_values,
    degrees_of_freedom,
    detectable_difference,
    holm,
    mcnemar,
    paired_bootstrap,
    stack,
)

FEW = 400
"""Resamples where the figure itself is not the point."""


def matrices(seeds=st.integers(1, 5), languages=st.integers(1, 3), rows=st.integers(2, 12)):
    """Two set-ups on the same rows: lists over languages of (K, N), bool."""

    def build(shape):
        count, num_languages, num_rows, seed = shape
        drawn = np.random.default_rng(seed).random((2, num_languages, count, num_rows)) < 0.6
        return list(drawn[0]), list(drawn[1])

    return st.tuples(seeds, languages, rows, st.integers(0, 2**32)).map(build)


def enumerate_resamples(values_CN):
    """Every way to draw N rows of N with replacement, equally likely: the means of each row of values, summed."""
    num_rows = values_CN.shape[1]
    return np.array(
        [values_CN[:, list(drawn)].mean(axis=1) for drawn in itertools.product(range(num_rows), repeat=num_rows)]
    )


# ---------------------------------------------------------------------------------------------------------------------
# A two-language example, worked out


OURS = {"si": [1, 1, 1, 0, 1], "ta": [1, 0, 1, 1, 1]}
THEIRS = {"si": [0, 1, 0, 0, 1], "ta": [0, 0, 1, 0, 1]}


def test_two_languages_with_the_same_rows_come_out_as_every_resample_enumerated():
    ours, theirs = ([np.array([row]) for row in data.values()] for data in (OURS, THEIRS))
    found = paired_bootstrap(ours, theirs, num_resamples=200_000)
    # Row by row, si and ta averaged: 1, 0, 0.5, 0.5, 0. Their mean is 0.4.
    all_means = enumerate_resamples(np.array([[1.0, 0.0, 0.5, 0.5, 0.0]]))[:, 0]
    assert len(all_means) == 5**5
    assert found.mean == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx(np.quantile(all_means, [0.025, 0.975]), abs=1e-9)
    assert found.standard_error == pytest.approx(all_means.std())
    assert found.p == pytest.approx(np.mean(np.abs(all_means - 0.4) >= 0.4 - 1e-12), abs=0.002)


def test_two_languages_of_unlike_rows_are_drawn_apart_as_enumerated():
    ours, theirs = ([np.array([row]) for row in data.values()] for data in (OURS, THEIRS))
    found = paired_bootstrap(ours, theirs, clusters=["si", "ta"], num_resamples=200_000)
    si = enumerate_resamples(np.array([[1.0, 0.0, 1.0, 0.0, 0.0]]))[:, 0]
    ta = enumerate_resamples(np.array([[1.0, 0.0, 0.0, 1.0, 0.0]]))[:, 0]
    both = (si[:, None] + ta[None, :]).ravel() / 2
    assert found.mean == pytest.approx(0.4)
    assert found.standard_error == pytest.approx(both.std())
    assert (found.low, found.high) == pytest.approx(np.quantile(both, [0.025, 0.975]), abs=1e-9)
    assert found.p == pytest.approx(np.mean(np.abs(both - 0.4) >= 0.4 - 1e-12), abs=0.002)


def test_the_example_has_the_exact_tests_worked_out_by_hand():
    si = mcnemar([OURS["si"]], [THEIRS["si"]])
    assert (si.wins, si.losses, si.discordant) == (2, 0, 0.4)
    assert si.p == pytest.approx(2 * 0.5**2)  # both of two discordant rows on one side, either side
    assert holm([si.p, 0.04]) == pytest.approx([0.5, 0.08])


def test_seeds_widen_the_interval_by_students_t_when_rows_do_not_matter():
    # Every row is alike within a seed, so that rows add nothing and the interval is that of a mean of 5 seeds.
    means = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = bootstrap_interval([np.repeat(means[:, None], 40, axis=1)], num_resamples=200_000)
    half = stats.t.ppf(0.975, 4) * means.std(ddof=1) / np.sqrt(5)
    assert found.degrees_of_freedom == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.01)
    assert found.detectable == pytest.approx((stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)) * found.standard_error)


def test_seeds_that_agree_on_every_row_leave_the_plain_bootstrap_over_rows():
    row = np.random.default_rng(0).random(60) < 0.7
    one, five = (bootstrap_interval([np.repeat(row[None], count, axis=0)]) for count in (1, 5))
    assert (one.mean, one.low, one.high) == pytest.approx((five.mean, five.low, five.high))
    assert five.degrees_of_freedom == float("inf")
    reference = stats.bootstrap((row,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (one.low, one.high) == pytest.approx(tuple(reference), abs=0.01)


def test_the_standard_error_of_rows_and_seeds_is_right_on_average():
    generator = np.random.default_rng(0)
    rows, seeds, rest = (generator.normal(size=(3000, *shape)) for shape in ((1, 60), (4, 1), (4, 60)))
    found = bootstrap([[values] for values in 0.8 * rows + 0.1 * seeds + 0.6 * rest], num_resamples=1)
    truth = 0.8**2 / 60 + 0.1**2 / 4 + 0.6**2 / 240
    assert np.mean([one.standard_error**2 for one in found]) == pytest.approx(truth, rel=0.03)
    assert np.var([one.mean for one in found]) == pytest.approx(truth, rel=0.08)


def test_seeds_whose_totals_are_equal_over_three_languages_leave_the_plain_bootstrap_over_rows():
    """Thirds add up to the same only but for rounding, which is no variance between seeds."""
    generator = np.random.default_rng(0)
    num_unlike = 0
    for _ in range(1500):
        first = generator.random((3, 40)) < 0.5
        second = np.stack([generator.permutation(row) for row in ~first])
        second[:2] = second[1::-1]
        if first.sum() != second.sum():
            continue
        seeds = [np.stack(pair) for pair in zip(first, second, strict=True)]
        values_KN = np.sum(seeds, axis=0) / 3
        if values_KN.mean(axis=0).var() >= (values_KN[0] - values_KN[1]).var() / 4:
            continue  # then rows are left, and the interval is narrower than theirs
        (values,) = stack(seeds)
        num_unlike += values[0].mean() != values[1].mean()
        found = bootstrap_interval(seeds, num_resamples=FEW)
        plain = bootstrap_interval([matrix.mean(axis=0, keepdims=True) for matrix in seeds], num_resamples=FEW)
        assert found.degrees_of_freedom == float("inf")
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
        assert found.high - found.low > 0.05
    assert num_unlike > 3


@pytest.mark.parametrize("rounding", [0.0, 1e-17, -3e-17, 1e-15])
def test_rounding_is_no_variance_between_seeds(rounding):
    values = np.array([[1.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
    seeds = np.concatenate([values, 1 - values + rounding])  # all is residual: what is left of the rows is nothing
    (found,) = bootstrap([[seeds + 0.1 * values]], num_resamples=2000)
    (plain,) = bootstrap([[(seeds + 0.1 * values).mean(axis=0, keepdims=True)]], num_resamples=2000)
    assert (found.low, found.high, found.p) == pytest.approx((plain.low, plain.high, plain.p))


@pytest.mark.parametrize(("seeds", "rows", "languages"), [(1, 30, 1), (5, 204, 1), (3, 50, 4)])
def test_an_accuracy_of_0_or_100_percent_has_the_exact_interval_of_its_rows(seeds, rows, languages):
    right, wrong = (bootstrap_interval([np.full((seeds, rows), value)] * languages) for value in (True, False))
    exact = stats.binomtest(rows, rows).proportion_ci(method="exact")
    assert (right.low, right.high) == pytest.approx((exact.low, 1.0))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - exact.low))
    few = bootstrap_interval([np.ones((2, 20)), np.ones((2, 60))], clusters=["a", "b"])
    assert few.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="exact").low)


# ---------------------------------------------------------------------------------------------------------------------
# What never changes a figure


@given(data=matrices())
@settings(max_examples=60, deadline=None)
def test_swapping_the_setups_turns_the_figures_round_and_keeps_p(data):
    ours, theirs = data
    found, swapped = (paired_bootstrap(*pair, num_resamples=FEW) for pair in ((ours, theirs), (theirs, ours)))
    assert swapped.mean == pytest.approx(-found.mean, abs=1e-12)
    assert swapped.p == found.p or found.mean == pytest.approx(0, abs=1e-12)
    if abs(found.mean) > 1e-12:
        assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    first, second = mcnemar(ours[0], theirs[0]), mcnemar(theirs[0], ours[0])
    assert (first.p, first.wins, first.losses) == (second.p, second.losses, second.wins)


@given(data=matrices(), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_changes_nothing_but_the_draws(data, seed):
    ours, theirs = data
    order = np.random.default_rng(seed).permutation(ours[0].shape[1])
    found = paired_bootstrap(ours, theirs, num_resamples=FEW)
    moved = paired_bootstrap([m[:, order] for m in ours], [m[:, order] for m in theirs], num_resamples=FEW)
    exact = ("mean", "standard_error", "degrees_of_freedom")
    assert [getattr(moved, name) for name in exact] == pytest.approx([getattr(found, name) for name in exact], abs=1e-9)
    assert mcnemar(ours[0][:, order], theirs[0][:, order]) == mcnemar(ours[0], theirs[0])


@given(data=matrices())
@settings(max_examples=40, deadline=None)
def test_a_setup_against_itself_is_no_difference_and_p_1(data):
    found = paired_bootstrap(data[0], data[0], num_resamples=FEW)
    assert (found.mean, found.low, found.high, found.p, found.standard_error) == (0, 0, 0, 1, 0)
    assert mcnemar(data[0][0], data[0][0]).p == 1


@given(data=matrices())
@settings(max_examples=40, deadline=None)
def test_p_is_never_0_and_the_interval_holds_the_mean_of_accuracy(data):
    found = paired_bootstrap(*data, num_resamples=FEW)
    assert 1 / (FEW + 1) <= found.p <= 1
    accuracy = bootstrap_interval(data[0], num_resamples=FEW)
    assert accuracy.low <= accuracy.mean + 1e-9
    assert accuracy.mean <= accuracy.high + 1e-9
    assert accuracy.mean == pytest.approx(np.mean(data[0]))


def test_the_same_seed_gives_the_same_figures_alone_or_among_others():
    generator = np.random.default_rng(3)
    problems = [stack(list(generator.random((2, 5, 50)) < 0.5), clusters) for clusters in (None, [0, 1], None)]
    together = bootstrap(problems, num_resamples=FEW, seed=7)
    for found, problem in zip(together, problems, strict=True):
        (alone,) = bootstrap([problem], num_resamples=FEW, seed=7)
        assert (alone.mean, alone.low, alone.high, alone.p) == pytest.approx(
            (found.mean, found.low, found.high, found.p)
        )
    assert bootstrap(problems, num_resamples=FEW, seed=8)[0].low != together[0].low


def test_more_problems_than_fit_at_once_come_out_the_same(monkeypatch):
    problems = [[matrix] for matrix in np.random.default_rng(0).random((9, 3, 20))]
    whole = bootstrap(problems, num_resamples=FEW)
    monkeypatch.setattr("layerbridge.evaluation.statistics.MAX_PROBLEMS_AT_ONCE", 2)
    assert [one.low for one in bootstrap(problems, num_resamples=FEW)] == pytest.approx([one.low for one in whole])
    monkeypatch.setattr("layerbridge.evaluation.statistics.MAX_COUNTS_AT_ONCE", 700)
    assert [one.low for one in bootstrap(problems, num_resamples=FEW)] == pytest.approx([one.low for one in whole])


def test_one_run_of_a_baseline_is_compared_with_every_seed():
    ours = np.random.default_rng(0).random((5, 30)) < 0.6
    baseline = ours[:1]
    wide = np.repeat(baseline, 5, axis=0)
    assert paired_bootstrap([ours], [baseline]) == paired_bootstrap([ours], [wide])
    assert mcnemar(ours, baseline) == mcnemar(ours, wide)


# ---------------------------------------------------------------------------------------------------------------------
# False positives at 5 %


def simulate(generator, *, experiments, seeds, rows, languages=1, seed_spread=0.0, row_spread=0.0):
    """Two set-ups that are equally good, (experiments, languages, K, N) each.

    Rows differ in difficulty, alike in all languages by half; `seed_spread` moves a whole training, alike in all
    languages by half; `row_spread` makes rows easier for one set-up than for the other.
    """
    shape = (experiments, languages, 1, rows)
    difficulty = generator.normal(size=(experiments, 1, 1, rows)) + generator.normal(size=shape)
    both = []
    for _ in range(2):
        skill = generator.normal(size=(experiments, 1, seeds, 1)) + generator.normal(
            size=(experiments, languages, seeds, 1)
        )
        liking = row_spread * generator.normal(size=shape)
        noise = generator.logistic(size=(experiments, languages, seeds, rows))
        both.append(0.7 * difficulty + seed_spread * 0.7 * skill + liking + 0.6 * noise > 0)
    return both


def simulate_baseline(generator, experiments, *, seeds, rows, seed_spread):
    """A set-up of several seeds and one run of a baseline that has no seed, equally good."""
    difficulty = generator.normal(size=(experiments, 1, 1, rows))
    skill = seed_spread * generator.normal(size=(experiments, 1, seeds, 1))
    ours = difficulty + skill + generator.normal(size=(experiments, 1, seeds, rows)) > 0
    theirs = difficulty + generator.normal(size=(experiments, 1, 1, rows)) > 0
    return ours, theirs


NULLS = {
    "one run": {"seeds": 1, "rows": 200},
    "one run, own rows": {"seeds": 1, "rows": 500, "row_spread": 0.7},
    "one run, average of 4": {"seeds": 1, "rows": 300, "languages": 4},
    "no seed effect": {"seeds": 5, "rows": 200},
    "no seed effect, own rows": {"seeds": 5, "rows": 400, "row_spread": 0.7},
    "small seed effect": {"seeds": 5, "rows": 200, "seed_spread": 0.15},
    "seed effect, own rows": {"seeds": 5, "rows": 400, "seed_spread": 0.3, "row_spread": 0.7},
    "large seed effect": {"seeds": 5, "rows": 200, "seed_spread": 1.0},
    "average of 4, no seed effect": {"seeds": 5, "rows": 200, "languages": 4},
    "average of 4, seed effect": {"seeds": 5, "rows": 200, "languages": 4, "seed_spread": 0.15, "row_spread": 0.5},
    "3 seeds, seed effect": {"seeds": 3, "rows": 200, "seed_spread": 0.3, "row_spread": 0.5},
    "against one run of a baseline": {"seeds": 5, "rows": 200, "seed_spread": 0.3, "fixed": True},
}


@pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)
def test_the_paired_bootstrap_has_5_percent_false_positives(null):
    null = dict(null)
    fixed = null.pop("fixed", False)
    generator = np.random.default_rng(2025)
    hits = total = 0
    experiments = 500 if null.get("languages", 1) == 1 else 300
    for part in range(20):  # each with draws of its own: what all experiments of a part share must not matter
        if fixed:
            ours, theirs = simulate_baseline(generator, experiments, **null)
        else:
            ours, theirs = simulate(generator, experiments=experiments, **null)
        difference = ours.astype(float) - theirs
        found = bootstrap([[matrix.mean(axis=0)] for matrix in difference], num_resamples=999, seed=part)
        hits += sum(one.p <= 0.05 for one in found)
        total += len(found)
    assert 0.04 <= hits / total <= 0.06, f"{100 * hits / total:.2f} % of {total}"


@pytest.mark.parametrize(
    ("num_seeds", "low", "high"),
    [(2, 0.016, 0.066), (3, 0.036, 0.06), (4, 0.043, 0.06), (5, 0.046, 0.055), (10, 0.049, 0.052)],
)
def test_the_degrees_of_freedom_keep_the_level_whatever_the_shares_of_rows_seeds_and_residual(num_seeds, low, high):
    """By integration, for many rows: rows' variance is known then, and the seeds' follows a chi square."""
    chi = stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, num_seeds - 1) / (num_seeds - 1)
    rates = []
    for residual in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1):  # of the variance that rows and residual make, 1
        for seeds in (0, 0.1, 0.25, 0.5, 1, 2, 5, 20):
            if residual + seeds > 0:
                between = (seeds + residual) * chi
                total = 1 - residual + between
                critical = stats.t.ppf(0.975, np.minimum(degrees_of_freedom(num_seeds, between / total), 1e7))
                rates.append(2 * stats.norm.sf(critical * np.sqrt(total / (1 + seeds))).mean())
    assert low <= min(rates)
    assert max(rates) <= high


def test_the_exact_test_never_has_more_than_5_percent_false_positives():
    generator = np.random.default_rng(0)
    for seeds in (1, 5):
        ours, theirs = simulate(generator, experiments=1000, seeds=seeds, rows=200)
        rate = np.mean([mcnemar(a[0], b[0]).p <= 0.05 for a, b in zip(ours, theirs, strict=True)])
        assert rate <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Exact tests, Holm, power


@given(wins=st.integers(0, 40), losses=st.integers(0, 40), ties=st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_mcnemar_of_one_pair_is_the_binomial_test_of_its_discordant_rows(wins, losses, ties):
    ours = [True] * wins + [False] * losses + [True] * (ties + 1)
    theirs = [False] * wins + [True] * losses + [True] * (ties + 1)
    found = mcnemar([ours], [theirs])
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert found.p == expected
    assert (found.wins, found.losses) == (wins, losses)
    assert found.discordant == pytest.approx((wins + losses) / len(ours))


def test_several_pairs_are_combined_by_the_upper_median():
    assert combine_p_values([0.03]) == 0.03
    assert combine_p_values([0.01, 0.04]) == 0.04
    assert combine_p_values([0.5, 0.01, 0.02]) == pytest.approx(0.02 * 3 / 2)
    assert combine_p_values([0.5, 0.01, 0.02, 0.9, 0.03]) == pytest.approx(0.03 * 5 / 3)
    assert combine_p_values([0.9, 0.8, 0.7]) == 1


def test_combined_p_values_hold_the_level_under_the_worst_dependence():
    """Of 5 tests always exactly 3 reject, as often as levels allow: the case that Rüger's bound is sharp for."""
    generator = np.random.default_rng(0)
    bound = 0.05 * 3 / 5  # p at or under this must be as rare for each test
    rejected = 0
    for _ in range(20_000):
        p_values = bound + (1 - bound) * generator.random(5)
        if generator.random() < 0.05:
            p_values[generator.permutation(5)[:3]] = bound * generator.random(3)
        rejected += combine_p_values(list(p_values)) <= 0.05
    assert rejected / 20_000 == pytest.approx(0.05, abs=0.005)


@given(p_values=st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_keeps_their_order_and_ends_at_1(p_values):
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    assert all(0 <= value <= 1 for value in adjusted)
    for (p, after), (q, later) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert (p <= q and after <= later) or (p >= q and after >= later)


def test_holm_is_the_step_down_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(("rows", "discordant"), [(200, 0.3), (500, 0.2), (5000, 0.1)])
def test_the_detectable_difference_is_found_in_80_percent_of_simulations(rows, discordant):
    difference = detectable_difference(rows, discordant)
    generator = np.random.default_rng(0)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    wins, losses, _ = generator.multinomial(rows, shares, size=20_000).T
    # The formula is of the test by the normal distribution; the exact one needs a little more.
    assert np.mean(np.abs(wins - losses) >= 1.959964 * np.sqrt(wins + losses)) == pytest.approx(0.8, abs=0.02)


def test_the_detectable_difference_solves_connors_equation():
    level, power = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
    difference = detectable_difference(204, 0.25)
    needed = ((level * 0.25**0.5 + power * (0.25 - difference**2) ** 0.5) / difference) ** 2
    assert needed == pytest.approx(204)


def test_runs_that_never_disagreed_still_leave_something_undetectable():
    # Then every row that differs is a win: 7 of 7 are needed, nearly.
    assert 5 / 200 < detectable_difference(200, 0.0) < 8 / 200
    assert detectable_difference(1, 0.5) == 1.0
    assert detectable_difference(200, 0.1) < detectable_difference(100, 0.1)


def test_the_detectable_average_is_found_in_80_percent_of_simulations():
    generator = np.random.default_rng(1)
    rows, rest = generator.normal(size=(2000, 1, 200)), generator.normal(size=(2000, 1, 200))
    truth = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * (2 / 200) ** 0.5
    found = bootstrap([[values] for values in rows + rest + truth], num_resamples=1500)
    assert np.mean([one.detectable for one in found]) == pytest.approx(truth, rel=0.02)
    assert np.mean([one.p <= 0.05 for one in found]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("row_spread", "seed_spread"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.2)])
def test_what_five_seeds_can_show_of_one_language_is_found_in_80_percent_of_simulations(row_spread, seed_spread):
    """Connor's formula, of one pair of runs, would be far off here: it knows nothing of the other seeds."""
    generator = np.random.default_rng(3)
    options = {"experiments": 600, "seeds": 5, "rows": 200, "row_spread": row_spread, "seed_spread": seed_spread}

    def drawn(num_better):
        ours, theirs = (matrix[:, 0] for matrix in simulate(generator, **options))
        better = generator.random(ours.shape) < num_better  # rows that ours gets right as well, in every seed anew
        return bootstrap([[values] for values in (ours | better).astype(float) - theirs], num_resamples=999)

    stated = [one.detectable for one in drawn(0.0)]
    found = drawn(2 * np.mean(stated))  # half of all rows are wrong, so that this gains the stated difference
    assert np.mean([one.mean for one in found]) == pytest.approx(np.mean(stated), rel=0.06)
    assert np.mean([one.p <= 0.05 for one in found]) == pytest.approx(0.8, abs=0.06)


def test_without_scipy_the_message_says_what_to_install(monkeypatch):
    from layerbridge.errors import ConfigError

    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"need scipy.*pip install 'layerbridge\[study\]'"):
        mcnemar([[1]], [[0]])
