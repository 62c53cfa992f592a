"""Statistics against numbers worked out by hand or by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sb3_pg_ext.experiments.statistics import area_under_curve, curve_band, iqm, stratified_interval
from sb3_pg_ext.experiments.summary import number


def mean(scores, axis=None):
    return np.mean(scores, axis=axis)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1, 2], 1.5),
        ([1, 2, 4], 7 / 3),  # floor(3 / 4) = 0: nothing is cut
        ([0, 1, 2, 1000], 1.5),
        ([-1000, 1, 2, 3, 100], 2.0),
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),
        ([0, 0, 10, 20, 30, 40, 50, 60, 1000, 1000], 35.0),  # floor(10 / 4) = 2 at either end
    ],
)
def test_iqm_by_hand(scores: list[float], expected: float) -> None:
    assert iqm(scores) == pytest.approx(expected, rel=1e-12)


def test_iqm_along_an_axis_is_the_iqm_of_each_column() -> None:
    scores = np.random.default_rng(0).normal(size=(9, 4))
    by_hand = [np.sort(column)[2:-2].mean() for column in scores.T]
    assert iqm(scores, axis=0) == pytest.approx(by_hand, rel=1e-12)


def test_the_interval_is_that_of_all_resamples() -> None:
    scores = [0.0, 1.0, 5.0, 7.0]
    exact = np.quantile([np.mean(each) for each in itertools.product(scores, repeat=4)], [0.05, 0.95])
    found = stratified_interval([scores], mean, level=0.9, resamples=20_000)
    assert found.point == pytest.approx(3.25)
    # 256 equally likely resamples; the quantiles lie on a grid of 0.25
    assert [found.low, found.high] == pytest.approx(exact, abs=0.25)


def test_resampling_stays_inside_its_stratum() -> None:
    found = stratified_interval([[0.0, 0.0, 0.0], [10.0, 10.0, 10.0]], mean)
    assert (found.point, found.low, found.high) == (5.0, 5.0, 5.0)


def test_the_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = stratified_interval([rng.normal(size=30)], mean, resamples=400)
        hits += found.low <= 0.0 <= found.high
    # 95 % nominal; the percentile method is a little narrow at n = 30
    assert 0.88 * 200 <= hits <= 0.99 * 200


def test_one_run_has_no_interval_and_no_run_no_estimate() -> None:
    alone = stratified_interval([[3.0]])
    assert alone.point == 3.0
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    with pytest.raises(ValueError, match="no score"):
        stratified_interval([[], []])


def test_the_same_scores_have_the_same_interval() -> None:
    scores = [[1.0, 5.0, 2.0], [3.0, 4.0, 8.0]]
    assert stratified_interval(scores) == stratified_interval(scores)


def test_a_band_is_the_interval_at_each_point() -> None:
    # Two runs that cross: at each point the spread is the same, and so are the bounds.
    middle, low, high = curve_band([[0.0, 3.0, 1.5], [3.0, 0.0, 1.5]], level=0.9)
    assert middle == pytest.approx([1.5, 1.5, 1.5])
    assert low == pytest.approx([0.0, 0.0, 1.5])
    assert high == pytest.approx([3.0, 3.0, 1.5])
    # Each of the four resamples has probability 1/4: the middle half of them are one of each run.
    assert curve_band([[0.0], [3.0]], level=0.4)[1:] == (pytest.approx([1.5]), pytest.approx([1.5]))


def test_a_band_agrees_with_the_interval_of_a_single_score() -> None:
    curves = np.random.default_rng(0).normal(size=(12, 3))
    middle, low, high = curve_band(curves, level=0.9, resamples=20_000)
    for point, scores in enumerate(curves.T):
        found = stratified_interval([scores], level=0.9, resamples=20_000)
        assert middle[point] == pytest.approx(found.point)
        assert [low[point], high[point]] == pytest.approx([found.low, found.high], abs=0.02)


def test_a_band_of_one_run_is_open() -> None:
    middle, low, high = curve_band([[1.0, 2.0]])
    assert middle == pytest.approx([1.0, 2.0])
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@pytest.mark.parametrize(
    ("steps", "returns", "total", "expected"),
    [
        ([0, 10], [0, 100], 10, 50.0),
        ([0, 5, 10], [0, 100, 100], 10, 75.0),
        ([0, 1, 10], [0, 10, 10], 10, 9.5),  # uneven steps: 5 + 90, over 10
        ([0, 10], [0, 100], 5, 25.0),  # cut at the budget
        ([0, 10], [0, 100], 20, 75.0),  # ended early: it stays where it was
        ([5, 10], [20, 40], 10, 30.0),  # measured from where the curve begins
    ],
)
def test_area_under_a_curve(steps: list[int], returns: list[float], total: int, expected: float) -> None:
    assert area_under_curve(steps, returns, total) == pytest.approx(expected)


def test_a_single_point_has_no_area() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        area_under_curve([0], [1.0], 10)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (500.0, "500.0"),
        (487.345, "487.3"),
        (13.2549, "13.25"),
        (-0.05, "-0.0500"),
        (0.0, "0"),
        (-1234.5, "-1,234"),
        (123456.7, "123,457"),
        (1e-5, "1e-05"),
        (2.5e9, "2.5e+09"),
    ],
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert number(value) == text
