"""Whether one algorithm is better than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from sb3_pg_ext.experiments.statistics.aggregates import Array
from sb3_pg_ext.experiments.statistics.bootstrap import RESAMPLES, Estimate, percentiles

_STEPS_TO_SCALE = 64  # numbers of subsets grow by 2 at each


def probability_of_improvement(
    first: Sequence[Any], second: Sequence[Any], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """P(A > B): how probably a run of the first is better than one of the second, in an environment drawn at random.

        1/M sum_m  U_m / (N_m K_m),    U_m = sum_nk 1[a_mn > b_mk] + 1/2 1[a_mn = b_mk]

    U is the statistic of Mann and Whitney (1947); Agarwal et al. 2021, section 4.3. With a percentile interval of the
    stratified bootstrap: runs of both are resampled, each within its environment. It compares within environments
    alone, so that scores need not be normalised.

    :param first: one (n_i,) array of scores per environment, of A
    :param second: one (k_i,) array per environment, in the same order, of B
    :raises ValueError: there are other environments in ``second``, or none, or one without runs
    """
    if len(first) != len(second) or not first or not all(len(scores) for scores in (*first, *second)):
        raise ValueError(
            f"first and second have runs in {len(first)} and {len(second)} environments: the same ones are needed, "
            "at least one, and at least one run in each"
        )
    wins = [_wins(a, b) for a, b in zip(first, second, strict=True)]
    point = float(np.mean([each.mean() for each in wins]))
    if min(min(each.shape) for each in wins) < 2:
        return Estimate(point, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    resampled = np.mean([_resampled_wins(each, generator, resamples) for each in wins], axis=0)
    low, high = percentiles(resampled, level)
    return Estimate(point, float(low), float(high))


def _wins(first: Any, second: Any) -> Array:
    """(n, k) 1 where the first is better, 1/2 at a tie, else 0."""
    difference = np.subtract.outer(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    return (np.sign(difference) + 1) / 2


def _resampled_wins(wins: Array, generator: np.random.Generator, resamples: int) -> Array:
    # How often each run is drawn is multinomial; U is bilinear in these numbers, so that no pair is drawn one by one.
    n, k = wins.shape
    rows = generator.multinomial(n, np.full(n, 1 / n), resamples) / n
    columns = generator.multinomial(k, np.full(k, 1 / k), resamples) / k
    return np.einsum("rn,nk,rk->r", rows, wins, columns, optimize=True)


def rank_test(first: Any, second: Any) -> float:
    """Two-sided p-value of the test of Mann and Whitney (1947): no difference makes scores of either larger.

    Why this one: returns are bounded, skewed and tied (runs that all reach the maximum), where the t-test of Welch has
    no ground and, without any spread, no value; and U / (n k) is the P(A > B) that is reported. The p-value is exact,
    ties included: the permutation distribution of the sum of mid-ranks by the recursion over runs of Streitberg and
    Röhmel (1986, Exact Distributions for Permutation and Rank Tests), twice the ranks being whole numbers. Without ties
    it depends on n and k alone, and is worked out once.

    :param first: (n,) scores
    :param second: (k,) scores
    :return: 1 if one of them is empty
    """
    n, k = len(first), len(second)
    if not n or not k:
        return 1.0
    ranks = stats.rankdata(np.concatenate([first, second]))
    untied = len(np.unique(ranks)) == n + k
    chances = _chances_of_wins(n, k) if untied else _chances_of_sums(np.rint(2 * ranks).astype(np.int64), n)
    # The statistic in steps of the distribution: wins of the first, or the sum of its ranks, doubled.
    observed = 2 * ranks[:n].sum() if not untied else ranks[:n].sum() - n * (n + 1) / 2
    middle = (len(chances) - 1) / 2 if untied else n * (n + k + 1)
    distance = np.abs(np.arange(len(chances)) - middle)
    return float(min(1.0, chances[distance >= abs(observed - middle) - 0.25].sum()))


@cache
def _chances_of_wins(n: int, k: int) -> Array:
    """(n k + 1) probability of each number of wins of n scores over k others, without ties.

    By the recursion of Mann and Whitney (1947) over the largest of all: it is one of the n, and wins over all k, with
    probability n / (n + k), or one of the others. All terms are positive, so that nothing is lost by rounding.
    """
    rows = [np.ones(1) for _ in range(n + 1)]  # those of i scores over j others
    for j in range(1, k + 1):
        for i in range(1, n + 1):
            chances = np.zeros(i * j + 1)
            chances[: i * (j - 1) + 1] = j / (i + j) * rows[i]
            chances[j:] += i / (i + j) * rows[i - 1]
            rows[i] = chances
    rows[n].flags.writeable = False
    return rows[n]


def _chances_of_sums(ranks: Any, n: int) -> Array:
    """(s,) probability of each sum of n of the ranks, drawn without replacement."""
    chances = np.zeros((n + 1, int(ranks.sum()) + 1))
    chances[0, 0] = 1.0
    reach = 0  # the largest sum so far
    for seen, rank in enumerate(np.sort(ranks), 1):
        reach, most = reach + int(rank), min(n, seen)
        chances[1 : most + 1, rank : reach + 1] += chances[:most, : reach + 1 - rank]
        if not seen % _STEPS_TO_SCALE:
            chances /= chances.sum(axis=1).max()  # numbers of subsets outgrow floating-point numbers
    return chances[n] / chances[n].sum()


def least_p_value(n: int, k: int) -> float:
    """The smallest p-value that :func:`rank_test` can have with n and k runs: ``2 / binomial(n + k, n)``."""
    return min(1.0, 2 / math.comb(n + k, n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number m, so that any false finding at all is as improbable as they say.

        p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Holm (1979, A Simple Sequentially Rejective Multiple Test Procedure): never weaker than Bonferroni's correction, and
    valid whatever the dependence between the tests, which pairs of the same algorithms do not lack.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return [float(value) for value in corrected]


@dataclass(frozen=True)
class Pair:
    """Two algorithms in one environment.

    :param improvement: P(first > second)
    :param p_value: of :func:`rank_test`
    :param corrected: the same by :func:`holm` over all pairs
    """

    first: str
    second: str
    improvement: Estimate
    p_value: float
    corrected: float


def compare_pairs(scores: dict[str, Any]) -> list[Pair]:
    """All pairs of algorithms in one environment.

    :param scores: label -> (n,) scores; those without any are left out
    """
    known = [label for label, values in scores.items() if len(values)]
    pairs = [(a, b) for number, a in enumerate(known) for b in known[number + 1 :]]
    p_values = [rank_test(scores[a], scores[b]) for a, b in pairs]
    return [
        Pair(a, b, probability_of_improvement([scores[a]], [scores[b]]), p_value, corrected)
        for (a, b), p_value, corrected in zip(pairs, p_values, holm(p_values), strict=True)
    ]
