"""Numbers that sum up the scores of many runs.

Each takes one array of scores per environment and reduces its axis of runs, as ``scipy.stats.bootstrap`` wants it:
``iqm(cartpole, acrobot)``, or ``iqm(scores, axis=0)`` of one environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[..., Any]


def _pooled(strata: tuple[Any, ...], axis: int | None) -> Array:
    arrays = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)


def iqm(*strata: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter, ``floor(n / 4)`` each.

    As robust as the median, and nearly as efficient as the mean (Agarwal et al. 2021, section 4.3). The scores of all
    environments are one sample, so that one with more runs has more weight.

    :param strata: (n_i, ...) one score per run and environment i
    :param axis: the axis of the runs; ``None`` takes all scores as one sample
    :return: scalar, or (...)
    """
    return stats.trim_mean(_pooled(strata, axis), 0.25, axis=axis)


def mean(*strata: Any, axis: int | None = None) -> Any:
    """Mean over environments of the mean over runs (Agarwal et al. 2021, section 2).

    :param strata: (n_i, ...) one score per run and environment i
    :param axis: the axis of the runs; ``None`` takes all of an environment
    :return: scalar, or (...)
    """
    return np.mean([np.mean(stratum, axis=axis) for stratum in strata], axis=0)


def median(*strata: Any, axis: int | None = None) -> Any:
    """Median over runs of one environment; median over several environments of their means over runs.

    The latter is what papers have called the median score (Agarwal et al. 2021, section 2). It says nothing of how bad
    the worse half of the environments is.

    :param strata: (n_i, ...) one score per run and environment i
    :param axis: the axis of the runs; ``None`` takes all of an environment
    :return: scalar, or (...)
    """
    if len(strata) == 1:
        return np.median(strata[0], axis=axis)
    return np.median([np.mean(stratum, axis=axis) for stratum in strata], axis=0)


def optimality_gap(*strata: Any, axis: int | None = None, target: float = 1.0) -> Any:
    """How far scores stay below ``target``, what lies beyond it not counted (Agarwal et al. 2021, section 4.3).

        target - mean_i mean_n min(x_in, target)

    :param strata: (n_i, ...) one normalised score per run and environment i
    :param axis: the axis of the runs; ``None`` takes all of an environment
    :param target: the score that is wanted, in units of the scores
    :return: scalar, or (...): the lower the better, 0 if all reach the target
    """
    return target - mean(*(np.minimum(stratum, target) for stratum in strata), axis=axis)


#: Of normalised scores over several environments; the name -> the function.
AGGREGATES: Mapping[str, Statistic] = {"IQM": iqm, "median": median, "mean": mean, "optimality gap": optimality_gap}


def normalise(scores: Any, low: float, high: float) -> Array:
    """``(score - low) / (high - low)``, so that scores of different environments compare.

    :param scores: (...) returns
    :param low: the return that counts as 0, usually of random actions
    :param high: the return that counts as 1, usually of a good policy
    :raises ValueError: ``high`` is not above ``low``, or one of them is not finite
    """
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        raise ValueError(f"low={low}, high={high}: two finite returns are needed, the second above the first")
    return (np.asarray(scores, dtype=np.float64) - low) / (high - low)
