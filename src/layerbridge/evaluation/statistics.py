"""How sure an accuracy or a difference is: bootstrap over rows and seeds, exact McNemar, Holm, and power.

The question answered is about these set-ups trained again with other seeds and asked other rows of the same kind, so
rows and seeds are both drawn at random. With one seed it is about that one training and other rows. Languages are not
drawn: an average is over these ones.

K seeds, N rows, L languages, B resamples. A matrix ends in its dimensions: `correct_KN` is (K, N), bool, a row for
each seed. Rows of several languages that are translations of each other form clusters, and are drawn together.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerbridge.errors import ConfigError

NUM_RESAMPLES = 10_000
LEVEL = 0.05
POWER = 0.8
ROUNDING = 1e-20
"""A variance of fractions below this is none: sums of equal fractions differ in their last digits."""
MAX_PROBLEMS_AT_ONCE = 1000
MAX_COUNTS_AT_ONCE = 4_000_000

Matrix = NDArray[np.float64]
Problem = Sequence[Matrix]
"""Matrices (K, N_j) whose means add up to what is estimated; each matrix has rows of its own, all have the K seeds."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its bootstrap interval and test."""

    mean: float
    low: float
    high: float
    """95 % interval."""
    p: float
    """Two-sided, of a mean of 0; never 0: at least 1 / (resamples + 1)."""
    standard_error: float
    degrees_of_freedom: float
    """Of the standard error; infinite: rows alone were drawn."""
    num_seeds: int

    @property
    def detectable(self) -> float:
        """The smallest true mean, in size, that a standard error like this shows with 80 % power at 5 %, two-sided.

        Not known where the standard error is 0: nothing varied, so nothing tells.
        """
        t = _scipy_stats().t
        quantiles = t.ppf(1 - LEVEL / 2, self.degrees_of_freedom) + t.ppf(POWER, self.degrees_of_freedom)
        return float(quantiles * self.standard_error)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Exact McNemar over pairs of runs."""

    p: float
    wins: int
    """Rows that only the first got right, summed over pairs."""
    losses: int
    """Rows that only the second got right, summed over pairs."""
    discordant: float
    """Fraction of rows that the two judge unlike, mean over pairs."""


def bootstrap_interval(
    correct: Sequence[ArrayLike],
    *,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return a set-up's mean accuracy over languages, seeds and rows, with its 95 % interval.

    Args:
        correct: One matrix (K, N) a language, true where a seed got a row right.
        clusters: One name a language; languages of one name have the same rows in the same order. None: all have.
        num_resamples: B.
        seed: Of the resampling; the same seed gives the same figures.
    """
    problem = stack(correct, clusters)
    (found,) = bootstrap([problem], num_resamples=num_resamples, seed=seed)
    return with_exact_bounds(found, problem)


def with_exact_bounds(estimate: Estimate, problem: Problem) -> Estimate:
    """Return an accuracy's estimate; where all rows are right or all are wrong, with an interval that is not a point.

    Nothing varies there for a bootstrap to draw. The interval is Clopper and Pearson's (1934, Biometrika 26) for all
    or none of N rows, N of the smallest cluster: languages and seeds are not taken for rows of their own.
    """
    if ROUNDING**0.5 < estimate.mean < 1 - ROUNDING**0.5:
        return estimate
    num_rows = min(values_KN.shape[1] for values_KN in problem)
    all_right = (LEVEL / 2) ** (1 / num_rows)  # the beta distribution's quantile in closed form
    low, high = (all_right, 1.0) if estimate.mean > 0.5 else (0.0, 1 - all_right)
    return replace(estimate, low=low, high=high)


def paired_bootstrap(
    correct: Sequence[ArrayLike],
    reference: Sequence[ArrayLike],
    *,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return how much better one set-up is than another on the same rows, with its 95 % interval and p.

    Args:
        correct: One matrix (K, N) a language, rows in the same order as the reference's.
        reference: The same of the other set-up; seed k is paired with seed k, and (1, N) with every seed.
        clusters: As of `bootstrap_interval`.
        num_resamples: B.
        seed: Of the resampling.
    """
    differences = [subtract(ours, theirs) for ours, theirs in zip(correct, reference, strict=True)]
    (found,) = bootstrap([stack(differences, clusters)], num_resamples=num_resamples, seed=seed)
    return found


def subtract(correct: ArrayLike, reference: ArrayLike) -> Matrix:
    """Return -1, 0 or 1 for every seed and row, (K, N); one of the two may be (1, N)."""
    return np.asarray(correct, dtype=np.float64) - np.asarray(reference, dtype=np.float64)


def stack(matrices: Sequence[ArrayLike], clusters: Sequence[Hashable] | None = None) -> list[Matrix]:
    """Return the problem whose estimate is the mean over languages: one matrix for each cluster of languages.

    Args:
        matrices: One (K, N) a language.
        clusters: As of `bootstrap_interval`.
    """
    names = [0] * len(matrices) if clusters is None else list(clusters)
    found: dict[Hashable, Matrix] = {}
    for name, matrix in zip(names, matrices, strict=True):
        values_KN = np.asarray(matrix, dtype=np.float64) / len(matrices)
        found[name] = found[name] + values_KN if name in found else values_KN
    return list(found.values())


def bootstrap(problems: Sequence[Problem], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[Estimate]:
    """Estimate many means; each comes out as it would alone.

    Rows are drawn with replacement, as often as there are rows. A replicate's deviation from the mean is

        (g d + sqrt(s²/K) z) sqrt(f / c),   z ~ N(0, 1),   c ~ chi² with f degrees of freedom

    where d is the resampled rows' deviation of the seeds' mean, and s² the variance between the K seeds' means. s²/K
    holds two things that differ between seeds, the seeds themselves and their residual e on these rows, and d holds e
    as well; `g² = 1 - Var(e) / Var(d)`, from the mean squares of the table rows x seeds, counts it once. f is
    `degrees_of_freedom`. With one seed it is the plain bootstrap over rows, and so it is where nothing else is left.
    """
    found: list[Estimate] = []
    for start in range(0, len(problems), MAX_PROBLEMS_AT_ONCE):
        block = problems[start : start + MAX_PROBLEMS_AT_ONCE]
        deviations_PB = _resample_rows(block, num_resamples, seed)
        found += [_estimate(problem, row, seed) for problem, row in zip(block, deviations_PB, strict=True)]
    return found


def _resample_rows(problems: Sequence[Problem], num_resamples: int, seed: int) -> Matrix:
    """Return how far the seeds' mean of each problem moves when its rows are drawn again, (problems, B)."""
    columns: dict[tuple[int, int], list[int]] = {}
    for number, problem in enumerate(problems):
        for part, values_KN in enumerate(problem):
            columns.setdefault((values_KN.shape[1], part), []).append(number)
    deviations_PB = np.zeros((len(problems), num_resamples))
    for (num_rows, part), numbers in columns.items():
        rows_CN = np.stack([problems[number][part].mean(axis=0) for number in numbers])
        rows_CN -= rows_CN.mean(axis=1, keepdims=True)
        # One part's rows are drawn with one generator, whatever else is asked for: problems share their draws.
        generator = np.random.default_rng([seed, 1, num_rows, part])
        step = max(1, MAX_COUNTS_AT_ONCE // num_rows)
        for start in range(0, num_resamples, step):
            stop = min(start + step, num_resamples)
            counts_BN = _draw_counts(generator, stop - start, num_rows)
            deviations_PB[numbers, start:stop] += rows_CN @ counts_BN.T / num_rows
    return deviations_PB


def _draw_counts(generator: np.random.Generator, num_resamples: int, num_rows: int) -> Matrix:
    """Return how often each row is drawn: multinomial, summing to `num_rows` in each resample."""
    drawn_BN = generator.integers(num_rows, size=(num_resamples, num_rows))
    drawn_BN += num_rows * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn_BN.ravel(), minlength=num_resamples * num_rows)
    return counts.reshape(num_resamples, num_rows).astype(np.float64)


def _estimate(problem: Problem, row_deviations_B: Matrix, seed: int) -> Estimate:
    num_seeds = len(problem[0])
    means_K = np.sum([values_KN.mean(axis=1) for values_KN in problem], axis=0)
    mean = float(means_K.mean())
    variance, freedom, deviations_B = _variance_of_rows(problem), float("inf"), row_deviations_B
    variance = variance if variance > ROUNDING else 0.0
    if num_seeds > 1:
        between = float(means_K.var(ddof=1)) / num_seeds
        between = between if between > ROUNDING else 0.0
        rows = variance - _variance_of_residual(problem)
        rows = rows if rows > max(ROUNDING, 1e-12 * variance) else 0.0
        if rows + between > 0:  # otherwise the seeds agree by chance, which proves nothing of the rows
            deviations_B = row_deviations_B * (np.sqrt(rows / variance) if variance > 0 else 0.0)
            variance = rows + between
        if between > 0:
            freedom = degrees_of_freedom(num_seeds, share=between / variance)
            generator = np.random.default_rng([seed, 0])
            normal_B = generator.standard_normal(len(deviations_B))
            # The mean's sign, so that swapping the set-ups turns every figure round and keeps p.
            deviations_B = deviations_B + np.copysign(np.sqrt(between), mean) * normal_B
            deviations_B *= np.sqrt(freedom / generator.chisquare(freedom, len(deviations_B)))
    low, high = mean + np.quantile(deviations_B, [LEVEL / 2, 1 - LEVEL / 2])
    # Sums of products in another order differ in the last digits; what is equal must count as reached.
    reached = int(np.count_nonzero(np.abs(deviations_B) >= abs(mean) - 1e-12))
    return Estimate(
        mean=mean,
        low=float(low),
        high=float(high),
        p=(reached + 1) / (len(deviations_B) + 1),
        standard_error=float(np.sqrt(variance)),
        degrees_of_freedom=freedom,
        num_seeds=num_seeds,
    )


def degrees_of_freedom(num_seeds: int, share: ArrayLike) -> Any:
    """Return how well K seeds tell a variance of which the share q is known from them alone: `(K - 1) q^-x`.

    x = 2 would be Satterthwaite's, which is too sure of itself where seeds are few: up to 7.8 % false positives at 5 %
    with 3 seeds, 5.9 % with 5. `x = 2 - 2 / (K - 1)`, ours, keeps to 3.7..5.8 % with 3 and 4.7..5.4 % with 5, whatever
    the shares of rows, seeds and residual. With 2 seeds no x does; 1/2 gives 1.7..6.5 %.

    Args:
        num_seeds: K, at least 2.
        share: q, over 0 and up to 1; a number or an array.
    """
    return (num_seeds - 1) * np.asarray(share, dtype=np.float64) ** -max(0.5, 2 - 2 / (num_seeds - 1))


def _variance_of_rows(problem: Problem) -> float:
    """Return the variance of the seeds' mean when rows are drawn again."""
    return float(sum(values_KN.mean(axis=0).var() / values_KN.shape[1] for values_KN in problem))


def _variance_of_residual(problem: Problem) -> float:
    """Return the part of `_variance_of_rows` that is neither of rows nor of seeds: mean square residual / (K N)."""
    total = 0.0
    for values_KN in problem:
        num_seeds, num_rows = values_KN.shape
        rest_KN = values_KN - values_KN.mean(axis=0) - values_KN.mean(axis=1, keepdims=True) + values_KN.mean()
        total += float(np.square(rest_KN).sum()) / max(1, (num_seeds - 1) * (num_rows - 1)) / (num_seeds * num_rows)
    return total


# ------------------------------------------------------------------------------------------------------------
# Tests that are exact, their adjustment, and power


def mcnemar(correct_KN: ArrayLike, reference_KN: ArrayLike) -> McNemar:
    """Compare two set-ups by the rows that only one of them got right: an exact binomial test of one half.

    Says whether these trained runs differ on rows of this kind; other seeds are not its question.

    Args:
        correct_KN: (K, N), bool.
        reference_KN: The same rows; seed k is paired with seed k, and (1, N) with every seed. The K values of p,
            which depend on each other, become one by `combine_p_values`.
    """
    difference_KN = subtract(correct_KN, reference_KN)
    wins_K, losses_K = (difference_KN > 0).sum(axis=1), (difference_KN < 0).sum(axis=1)
    test = _scipy_stats().binomtest
    pairs = [(int(wins), int(wins + losses)) for wins, losses in zip(wins_K, losses_K, strict=True)]
    return McNemar(
        p=combine_p_values([test(won, unlike).pvalue if unlike else 1.0 for won, unlike in pairs]),
        wins=int(wins_K.sum()),
        losses=int(losses_K.sum()),
        discordant=float(np.mean(difference_KN != 0)),
    )


def combine_p_values(p_values: Sequence[float]) -> float:
    """Return one p of K that may depend on each other in any way: K/k times the k-th smallest, k = floor(K/2) + 1.

    Rüger 1978 (Metrika 25): of K tests of level a, however they depend on each other, k or more reject with a chance of
    a K/k at most. One p stays as it is; of an odd number it is a little less than twice the median.
    """
    ordered, rank = sorted(p_values), len(p_values) // 2 + 1
    return min(1.0, float(ordered[rank - 1]) * len(ordered) / rank)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false positive among them stays at the level (Holm 1979), in order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable_difference(num_rows: int, discordant: float) -> float:
    """Return the smallest true difference of accuracy that McNemar's test shows on N rows with 80 % power at 5 %.

    Solves Connor 1987 (Biometrics 43) for the difference δ, given the fraction of rows ψ that two runs judge unlike:
    `δ sqrt(N) = z_0.975 sqrt(ψ) + z_0.8 sqrt(ψ - δ²)`. As δ cannot be over ψ, ψ is taken to be δ where it is smaller.

    Args:
        num_rows: N.
        discordant: ψ, 0 to 1.
    """
    normal = _scipy_stats().norm
    level, power = float(normal.ppf(1 - LEVEL / 2)), float(normal.ppf(POWER))

    def shown(difference: float) -> bool:
        fraction = max(discordant, difference)
        return difference * num_rows**0.5 >= level * fraction**0.5 + power * (fraction - difference**2) ** 0.5

    low, high = 0.0, 1.0
    if not shown(high):
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise ConfigError("Statistics need scipy, which is not installed. pip install 'layerbridge[study]'") from None
    return stats
