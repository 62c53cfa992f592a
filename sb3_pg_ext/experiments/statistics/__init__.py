"""Statistics over runs that hold up with few seeds (Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the
Statistical Precipice, arXiv:2108.13264; Patterson et al. 2024, Empirical Design in Reinforcement Learning, JMLR 25)."""

from sb3_pg_ext.experiments.statistics.aggregates import (
    AGGREGATES,
    Array,
    Statistic,
    iqm,
    mean,
    median,
    normalise,
    optimality_gap,
)
from sb3_pg_ext.experiments.statistics.bootstrap import RESAMPLES, Estimate, curve_band, stratified_interval
from sb3_pg_ext.experiments.statistics.coverage import COVERAGE_OF_FEW
from sb3_pg_ext.experiments.statistics.curves import area_under_curve
from sb3_pg_ext.experiments.statistics.distribution import (
    guaranteed_share,
    performance_profile,
    tolerance_interval,
    worst_mean,
)
from sb3_pg_ext.experiments.statistics.pairs import (
    Pair,
    compare_pairs,
    holm,
    least_p_value,
    probability_of_improvement,
    rank_test,
)
from sb3_pg_ext.experiments.statistics.sequential import Decision, Design, missing_seeds, seeds_to_resolve, settle

__all__ = [
    "AGGREGATES",
    "COVERAGE_OF_FEW",
    "RESAMPLES",
    "Array",
    "Decision",
    "Design",
    "Estimate",
    "Pair",
    "Statistic",
    "area_under_curve",
    "compare_pairs",
    "curve_band",
    "guaranteed_share",
    "holm",
    "iqm",
    "least_p_value",
    "mean",
    "median",
    "missing_seeds",
    "normalise",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "rank_test",
    "seeds_to_resolve",
    "settle",
    "stratified_interval",
    "tolerance_interval",
    "worst_mean",
]
