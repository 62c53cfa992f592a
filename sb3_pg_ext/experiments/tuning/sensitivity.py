"""How much a setting matters, read off the trials that a tuning has made anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.tuning.axes import Axis

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]
FEWEST = 3  # trials of a bin that counts
_BINS = 5
_SHUFFLES = 400


@dataclass(frozen=True)
class Bin:
    """Trials with nearly the same value of a setting.

    :param place: their median place on the axis
    :param low: the lowest place
    :param high: the highest place
    :param count: how many there are
    :param quartiles: of their values: lower, median, upper
    """

    place: float
    low: float
    high: float
    count: int
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class Sensitivity:
    """What depends on one setting.

    :param axis: the setting
    :param bins: in the order of their places
    :param loss: see :func:`sensitivity`; NaN if it cannot be told
    :param chance: the loss that a setting without any influence stays below 19 times of 20
    """

    axis: Axis
    bins: tuple[Bin, ...]
    loss: float
    chance: float

    @property
    def matters(self) -> bool:
        """Whether the loss is more than chance."""
        return self.loss > self.chance


def sensitivity(axis: Axis, places: Sequence[float], values: Sequence[float]) -> Sensitivity:
    """The share of the range of values that is lost, on average, by leaving the best bin of a setting.

    The trials are sorted into bins: one for each option of a choice and each value of a number that has five at most;
    else five of equally many trials. Bins of fewer than three trials do not count. With m_b the median value in bin b
    of B, and v the values of the trials in them,

        loss = (max_b m_b - mean_{b != best} m_b) / (max v - min v),

    0 if the setting makes no difference, 1 if every other bin comes to the worst value of all. The best of B medians is
    above the others by chance as well: the 95th percentile of the loss over shuffled values says by how much.

    The trials are those of a search, not of a designed experiment: the other settings vary along with this one. With a
    random or quasi-random sampler they vary alike in all bins; other samplers crowd where values are high.

    :param axis: the setting
    :param places: (n,) of the trials on the axis
    :param values: (n,) of the same trials
    """
    x, y = np.asarray(places, dtype=np.float64), np.asarray(values, dtype=np.float64)
    members = [index for index in _sorted_into_bins(axis, x) if len(index) >= FEWEST]
    bins = tuple(_bin(x[index], y[index]) for index in members)
    return Sensitivity(axis, bins, _loss(y, members), _chance(y, members))


def _sorted_into_bins(axis: Axis, places: Array) -> list[Indices]:
    distinct = np.unique(places)
    if axis.options or len(distinct) <= _BINS:
        return [np.flatnonzero(places == place) for place in distinct]
    n_bins = max(1, min(_BINS, len(places) // FEWEST))
    edges = np.unique(np.quantile(places, np.linspace(0, 1, n_bins + 1)[1:-1]))
    number = np.searchsorted(edges, places, side="left")
    return [np.flatnonzero(number == each) for each in range(len(edges) + 1)]


def _bin(places: Array, values: Array) -> Bin:
    low, middle, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Bin(float(np.median(places)), float(places.min()), float(places.max()), len(places), (low, middle, high))


def _loss(values: Array, members: Sequence[Indices]) -> float:
    return float(_losses(values[None], members)[0])


def _losses(values: Array, members: Sequence[Indices]) -> Array:
    """
    :param values: (K, n) K assignments of values to the trials
    :return: (K,)
    """
    inside = np.concatenate(members) if members else np.zeros(0, dtype=int)
    if len(members) < 2 or np.ptp(values[0, inside]) == 0:
        return np.full(len(values), math.nan)
    medians = np.stack([np.median(values[:, index], axis=1) for index in members], axis=1)
    best = medians.max(axis=1)
    others = (medians.sum(axis=1) - best) / (len(members) - 1)
    return (best - others) / np.ptp(values[0, inside])


def _chance(values: Array, members: Sequence[Indices]) -> float:
    if len(members) < 2:
        return math.nan
    inside = np.sort(np.concatenate(members))
    shuffled = np.tile(values, (_SHUFFLES, 1))
    shuffled[:, inside] = np.random.default_rng(0).permuted(np.tile(values[inside], (_SHUFFLES, 1)), axis=1)
    return float(np.quantile(_losses(shuffled, members), 0.95))
