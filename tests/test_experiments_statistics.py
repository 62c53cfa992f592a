"""Statistics against numbers worked out by hand or by enumeration, against scipy, and against those of rliable."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sb3_pg_ext.experiments.statistics import (
    AGGREGATES,
    COVERAGE_OF_FEW,
    Estimate,
    area_under_curve,
    compare_pairs,
    curve_band,
    guaranteed_share,
    holm,
    iqm,
    least_p_value,
    mean,
    median,
    normalise,
    optimality_gap,
    pairs,
    performance_profile,
    probability_of_improvement,
    rank_test,
    stratified_interval,
    tolerance_interval,
    worst_mean,
)
from sb3_pg_ext.experiments.summary import estimate_text, number

RLIABLE = json.loads((Path(__file__).parent / "rliable_numbers.json").read_text())


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


def test_the_interval_is_that_of_scipy() -> None:
    strata = [[1.0, 5.0, 2.0], [3.0, 4.0, 8.0, 9.0]]
    theirs = stats.bootstrap(
        strata,
        lambda *resampled, axis: iqm(*resampled, axis=axis),
        n_resamples=3000,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(7),
    ).confidence_interval
    ours = stratified_interval(strata, resamples=3000, seed=7)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], rel=1e-12)


@pytest.mark.parametrize(("n", "n_studies"), [(3, 300), (5, 600), (30, 200)])
def test_the_interval_covers_as_much_as_is_said_of_it(n: int, n_studies: int) -> None:
    generator = np.random.default_rng(1)
    found = [stratified_interval([generator.normal(size=n)], resamples=1000) for _ in range(n_studies)]
    said = COVERAGE_OF_FEW.get(n, 0.945)
    error = math.sqrt(said * (1 - said) / n_studies)
    assert np.mean([each.low <= 0.0 <= each.high for each in found]) == pytest.approx(said, abs=2.6 * error)


def test_an_interval_of_five_runs_covers_less_than_it_is_called() -> None:
    assert [COVERAGE_OF_FEW[n] for n in (2, 3, 5)] == [0.49, 0.74, 0.90]
    assert sorted(COVERAGE_OF_FEW.values()) == list(COVERAGE_OF_FEW.values())
    assert max(COVERAGE_OF_FEW.values()) < 0.95


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


def test_a_band_over_environments_resamples_whole_runs_within_each() -> None:
    easy, hard = [[10.0, 20.0]] * 3, [[0.0, 2.0], [2.0, 0.0]]
    middle, low, high = curve_band(easy, hard, statistic=mean)
    assert middle == pytest.approx([5.5, 10.5])
    # The easy one does not vary; two picks of the hard one are alike with probability 1/2, to either side.
    assert low == pytest.approx([5.0, 10.0])
    assert high == pytest.approx([6.0, 11.0])
    assert np.isnan(curve_band(easy, hard[:1])[1]).all(), "one run of an environment has no interval"


# --- aggregates over environments


def test_aggregates_by_hand() -> None:
    strata = [[0.0, 1.0, 2.0], [0.5], [4.0, 6.0]]
    assert iqm(*strata, axis=-1) == pytest.approx((0.5 + 1 + 2 + 4) / 4)
    assert mean(*strata) == pytest.approx((1.0 + 0.5 + 5.0) / 3)
    assert median(*strata) == pytest.approx(1.0), "of the means of the environments"
    assert median([1.0, 2.0, 9.0]) == 2.0, "of the runs of a single one"
    # below 1: mean of (1, 0, 0), of 0.5, and of (0, 0)
    assert optimality_gap(*strata) == pytest.approx((1 / 3 + 0.5 + 0.0) / 3)
    assert optimality_gap([1.0, 3.0], target=2.0) == pytest.approx(0.5)


def test_aggregates_along_an_axis_are_those_of_each_row() -> None:
    strata = np.random.default_rng(0).normal(size=(2, 5, 8))
    for statistic in AGGREGATES.values():
        rows = [statistic(*(stratum[row] for stratum in strata), axis=-1) for row in range(5)]
        assert statistic(*strata, axis=-1) == pytest.approx(rows, rel=1e-12)


def test_normalised_scores() -> None:
    assert normalise([-500.0, -290.0, -80.0], -500, -80) == pytest.approx([0.0, 0.5, 1.0])
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match=f"low={low}, high={high}"):
            normalise([1.0], low, high)


@pytest.mark.parametrize("label", ["A", "B"])
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_are_those_of_rliable(name: str, label: str) -> None:
    found = stratified_interval(RLIABLE["scores"][label], AGGREGATES[name], resamples=20_000)
    point, low, high = RLIABLE["aggregates"][name.lower()][label]
    assert found.point == pytest.approx(point, abs=1e-8)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.004)  # widths are about 0.12


def test_profiles_are_those_of_rliable() -> None:
    for label in "AB":
        found = performance_profile(RLIABLE["scores"][label], RLIABLE["taus"], resamples=20_000)
        point, low, high = RLIABLE["profile"][label]
        assert found[0] == pytest.approx(point, abs=1e-8)
        assert found[1] == pytest.approx(low, abs=1 / 32 + 1e-9)  # on a grid of 1/32
        assert found[2] == pytest.approx(high, abs=1 / 32 + 1e-9)


def test_the_probability_of_improvement_is_that_of_rliable() -> None:
    found = probability_of_improvement(RLIABLE["scores"]["A"], RLIABLE["scores"]["B"], resamples=20_000)
    point, low, high = RLIABLE["improvement"]
    assert found.point == pytest.approx(point, abs=1e-8)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.005)


def test_sample_efficiency_is_that_of_rliable() -> None:
    found = curve_band(*RLIABLE["curves"], resamples=10_000)
    for ours, theirs, error in zip(found, RLIABLE["curve"], (1e-8, 0.012, 0.012), strict=True):
        assert ours == pytest.approx(theirs, abs=error)


# --- the distribution over runs


def test_a_profile_counts_what_is_above_in_each_environment() -> None:
    shares, low, high = performance_profile([[0.0, 1.0, 2.0, 3.0], [2.0, 2.0]], [-1, 0, 1, 2, 3])
    assert shares == pytest.approx([1.0, (3 / 4 + 1) / 2, (2 / 4 + 1) / 2, (1 / 4 + 0) / 2, 0.0])
    assert (low <= shares).all()
    assert (shares <= high).all()
    assert [low[0], high[0], low[-1], high[-1]] == [1.0, 1.0, 0.0, 0.0]
    assert np.isnan(performance_profile([[1.0]], [0.0])[1]).all()


def test_the_band_of_a_profile_is_that_of_a_share() -> None:
    # Half of 4 runs are above: binomial(4, 1/2) / 4, whose 10 % and 90 % quantiles are 1/4 and 3/4.
    _, low, high = performance_profile([[0.0, 0.0, 1.0, 1.0]], [0.5], level=0.8)
    assert [low[0], high[0]] == [0.25, 0.75]


def test_the_range_of_runs_holds_the_share_that_it_says() -> None:
    rng, n = np.random.default_rng(0), 7
    runs = rng.uniform(size=(20_000, n))  # the share of a uniform population inside an interval is its length
    inside = np.mean(np.ptp(runs, axis=1) >= guaranteed_share(n))
    above = np.mean(1 - runs.min(axis=1) >= guaranteed_share(n, one_sided=True))
    assert inside == pytest.approx(0.95, abs=0.006)
    assert above == pytest.approx(0.95, abs=0.006)
    assert guaranteed_share(n, one_sided=True) == pytest.approx(0.05 ** (1 / n))
    assert (guaranteed_share(1), guaranteed_share(0, one_sided=True)) == (0.0, 0.0)


def test_tolerance_intervals_by_wilks() -> None:
    # Wilks (1941): 46 values are the fewest whose range holds 90 % with confidence 95 %.
    assert math.isnan(tolerance_interval(np.arange(45.0))[0])
    assert tolerance_interval(np.arange(46.0)[::-1]) == (0.0, 45.0)
    assert math.isnan(tolerance_interval([])[0])
    low, high = tolerance_interval(np.arange(200.0))
    rank, n = int(low) + 1, 200
    assert (low, high) == (rank - 1, n - rank), "as many are cut at either end"
    holds = [1 - stats.binom.cdf(n - 2 * r, n, 0.9) for r in (rank, rank + 1)]  # P(more than that lie inside)
    assert 1 - holds[0] >= 0.95 > 1 - holds[1], "the innermost that is confident enough"


def test_the_mean_of_the_worst() -> None:
    assert worst_mean([5.0, 1.0, 2.0, 9.0, 3.0]) == pytest.approx(1.5), "ceil(5 / 4) = 2 of them"
    assert worst_mean([4.0, 1.0], [10.0]) == pytest.approx(5.5)
    assert worst_mean([[4.0, 1.0], [7.0, 9.0]], axis=1) == pytest.approx([1.0, 7.0])


# --- pairs


def test_the_probability_of_improvement_by_hand() -> None:
    found = probability_of_improvement([[1.0, 3.0], [5.0]], [[2.0, 3.0], [4.0]])
    assert found.point == pytest.approx(((0 + 0 + 1 + 0.5) / 4 + 1) / 2)
    assert math.isnan(found.low), "an environment with a single run"
    turned = probability_of_improvement([[2.0, 3.0], [4.0]], [[1.0, 3.0], [5.0]])
    assert turned.point == pytest.approx(1 - found.point)
    for first, second in (([[1.0]], []), ([], []), ([[1.0]], [[]])):
        with pytest.raises(ValueError, match="at least one run"):
            probability_of_improvement(first, second)


def test_the_interval_of_an_improvement_resamples_runs_of_both() -> None:
    # Every run of A beats the first of B and loses to the second: the share of the first in B's resample, 0, 1/2 or 1.
    found = probability_of_improvement([[1.0, 1.0]], [[0.0, 2.0]], level=0.4)
    assert (found.point, found.low, found.high) == (0.5, 0.5, 0.5)
    found = probability_of_improvement([[1.0, 1.0]], [[0.0, 2.0]], level=0.6)
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "k"), [(3, 3), (5, 4), (2, 7)])
def test_the_rank_test_is_exact_with_ties(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    for scores in (rng.normal(size=n + k), rng.integers(0, 4, n + k)):
        ranks = stats.rankdata(scores)
        expected = n * (n + k + 1) / 2
        sums = [abs(sum(chosen) - expected) for chosen in itertools.combinations(ranks, n)]
        exact = np.mean(np.array(sums) >= abs(ranks[:n].sum() - expected) - 1e-9)
        assert rank_test(scores[:n], scores[n:]) == pytest.approx(exact, rel=1e-9)


def by_the_recursion_over_ranks(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value by counting subsets of each size and sum, one rank after another."""
    n, ranks = len(first), (2 * stats.rankdata(np.concatenate([first, second]))).astype(int)
    counts = np.zeros((n + 1, ranks.sum() + 1), dtype=object)
    counts[0, 0] = 1
    for rank in ranks:
        for size in range(n, 0, -1):
            counts[size, rank:] += counts[size - 1, : counts.shape[1] - rank]
    middle = n * (len(ranks) + 1)
    extreme = np.abs(np.arange(counts.shape[1]) - middle) >= abs(ranks[:n].sum() - middle)
    return float(counts[n, extreme].sum() / counts[n].sum())


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (3, 8), (8, 3), (12, 12), (20, 15)])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_rank_test_is_exact_to_the_last_digits(n: int, k: int, tied: bool) -> None:
    generator = np.random.default_rng(n)
    for shift in (0.0, 1.0):
        scores = generator.normal(size=n + k) + np.where(np.arange(n + k) < n, shift, 0.0)
        scores = np.round(scores) if tied else scores
        assert rank_test(scores[:n], scores[n:]) == pytest.approx(
            by_the_recursion_over_ranks(scores[:n], scores[n:]), rel=1e-12
        )


def test_untied_runs_need_their_distribution_once(monkeypatch) -> None:
    monkeypatch.setattr(pairs, "_chances_of_sums", None)  # that of the ranks at hand is for ties alone
    pairs._chances_of_wins.cache_clear()
    generator = np.random.default_rng(0)
    for _ in range(3):
        rank_test(generator.normal(size=40), generator.normal(size=30))
    found = pairs._chances_of_wins.cache_info()
    assert (found.misses, found.hits) == (1, 2)
    assert not pairs._chances_of_wins(40, 30).flags.writeable, "shared by all who ask"


def test_the_rank_test_agrees_with_scipy_where_that_is_exact() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=30), rng.normal(size=25) + 0.7
    theirs = stats.mannwhitneyu(first, second, method="exact").pvalue
    assert rank_test(first, second) == pytest.approx(theirs, rel=1e-9)
    assert theirs < 0.05
    assert rank_test([1.0] * 9, [1.0] * 9) == 1.0
    assert rank_test([], [1.0]) == 1.0
    assert rank_test(range(5), range(5, 9)) == pytest.approx(least_p_value(5, 4)) == pytest.approx(2 / 126)


def test_the_correction_of_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.4]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([]) == []


def test_all_pairs_of_algorithms() -> None:
    found = compare_pairs({"a": [3.0, 4.0, 5.0, 6.0], "none": [], "b": [1.0, 2.0, 2.5, 0.0], "c": [3.0, 4.0, 5.0, 6.0]})
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.improvement.point for pair in found] == [1.0, 0.5, 0.0]
    assert [pair.corrected for pair in found] == pytest.approx(holm([pair.p_value for pair in found]))
    assert found[0].p_value == pytest.approx(2 / 70)
    assert found[0].corrected == pytest.approx(6 / 70)


# --- single curves


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


@pytest.mark.parametrize(
    ("point", "low", "high", "text"),
    [
        (0.8183, 0.7946, 0.8307, "0.818 [0.795, 0.831]"),
        (0.9165, 0.77, 1.09, "0.92 [0.77, 1.09]"),
        (-86.41, -87.72, -83.84, "-86.4 [-87.7, -83.8]"),
        (-220.1, -269.0, -139.3, "-220 [-269, -139]"),
        (-1007.2, -1103.4, -933.9, "-1,007 [-1,103, -934]"),
        (475.4734, 475.466, 475.481, "475.5 [475.5, 475.5]"),
        (500.0, 500.0, 500.0, "500.0 [500.0, 500.0]"),
        (5.1, -0.2, 31.0, "5 [0, 31]"),
        (0.5, math.nan, math.nan, "0.5000 [one run]"),
        (3e-5, 1e-5, 4e-5, "3e-05 [1e-05, 4e-05]"),
    ],
)
def test_an_estimate_has_the_digits_that_its_interval_has_use_for(point, low, high, text) -> None:
    assert estimate_text(Estimate(point, low, high)) == text
