"""How scores are distributed over runs, beyond their middle: profiles, tolerance intervals, worst seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from sb3_pg_ext.experiments.statistics.aggregates import Array
from sb3_pg_ext.experiments.statistics.bootstrap import percentiles, picks

_RESAMPLES_OF_PROFILES = 2000


def performance_profile(
    strata: Sequence[Any],
    thresholds: Any,
    level: float = 0.95,
    resamples: int = _RESAMPLES_OF_PROFILES,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Share of runs above each threshold: the score distribution (Agarwal et al. 2021, section 4.2).

        F(tau) = 1/M sum_m 1/N_m sum_n 1[x_mn > tau]

    With pointwise percentile intervals of the stratified bootstrap. A profile that lies above another everywhere is
    that of a better algorithm, whatever the scale of the scores.

    :param strata: one (n_i,) array of scores per environment
    :param thresholds: (k,) values of tau, in units of the scores
    :return: (k,) each: share, lower and upper bound; the bounds are NaN where an environment has a single run
    """
    taus = np.asarray(thresholds, dtype=np.float64)
    above = [np.asarray(stratum, dtype=np.float64)[:, None] > taus for stratum in strata]
    shares = np.mean([each.mean(axis=0) for each in above], axis=0)
    if min(map(len, above)) < 2:
        return shares, np.full(len(taus), np.nan), np.full(len(taus), np.nan)
    generator = np.random.default_rng(seed)
    # A mean of resampled rows is a product with the number of times that each is drawn, over n.
    resampled = [_frequencies(picks(generator, resamples, len(each)), len(each)) @ each for each in above]
    return shares, *percentiles(np.mean(resampled, axis=0), level)


def _frequencies(drawn: Any, n: int) -> Array:
    """(R, n) how often each of n runs is among the (R, n) drawn, over n."""
    shifted = drawn + n * np.arange(len(drawn))[:, None]
    return np.bincount(shifted.ravel(), minlength=n * len(drawn)).reshape(len(drawn), n) / n


def guaranteed_share(n: int, confidence: float = 0.95, one_sided: bool = False) -> float:
    """The share of all runs, seen or not, that lies between the worst and the best of ``n``, or above the worst.

    The share of a continuous population between two order statistics r and s of n is Beta(s - r, n - s + r + 1)
    distributed, whatever the distribution (Wilks 1941, Determination of Sample Sizes for Setting Tolerance Limits):
    Beta(n - 1, 2) from worst to best, Beta(n, 1) above the worst. What it exceeds with probability ``confidence`` is
    its lower quantile; above the worst, ``(1 - confidence) ** (1 / n)``.

    :param n: number of runs
    :param confidence: probability with which the statement holds
    :param one_sided: above the worst run, instead of between the worst and the best
    """
    if n < (1 if one_sided else 2):
        return 0.0
    return float(stats.beta.ppf(1 - confidence, *((n, 1) if one_sided else (n - 1, 2))))


def tolerance_interval(scores: Any, coverage: float = 0.9, confidence: float = 0.95) -> tuple[float, float]:
    """An interval that holds at least ``coverage`` of all runs, seen or not, with probability ``confidence``.

    A confidence interval says where the mean run is; this says what to expect of the next one (Patterson et al. 2024,
    Empirical Design in Reinforcement Learning, JMLR 25). From order statistics, without an assumption on
    the distribution (Wilks 1941): the innermost pair x_(r), x_(n + 1 - r), for which the quantile
    1 - confidence of Beta(n + 1 - 2r, 2r) reaches ``coverage``.

    :param scores: (n,) one score per run
    :return: lower and upper end; NaN if there are too few runs (46 are needed for 0.9 with probability 0.95)
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    ranks = np.arange(1, n // 2 + 1)
    fine = ranks[stats.beta.ppf(1 - confidence, n + 1 - 2 * ranks, 2 * ranks) >= coverage]
    if not len(fine):
        return math.nan, math.nan
    return float(ordered[fine[-1] - 1]), float(ordered[n - fine[-1]])


def worst_mean(*strata: Any, axis: int | None = None, share: float = 0.25) -> Any:
    """Mean of the worst ``share`` of the runs, ``ceil(share n)`` of them; the mean of it over environments.

    The conditional value at risk over runs (Chan et al. 2020, Measuring the Reliability of Reinforcement Learning
    Algorithms: "risk across runs").

    :param strata: (n_i, ...) one score per run and environment i
    :param axis: the axis of the runs; ``None`` takes all of an environment
    :return: scalar, or (...)
    """
    return np.mean([_lower_mean(np.asarray(stratum, dtype=np.float64), axis, share) for stratum in strata], axis=0)


def _lower_mean(scores: Array, axis: int | None, share: float) -> Any:
    moved = scores.ravel() if axis is None else np.moveaxis(scores, axis, -1)
    n_worst = math.ceil(share * moved.shape[-1])
    return np.sort(moved, axis=-1)[..., :n_worst].mean(axis=-1)
