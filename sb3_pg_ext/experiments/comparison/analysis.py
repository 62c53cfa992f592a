"""A comparison in numbers: each is worked out once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.results import Record, Reference
from sb3_pg_ext.experiments.statistics import (
    AGGREGATES,
    Array,
    Estimate,
    Pair,
    compare_pairs,
    curve_band,
    normalise,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from sb3_pg_ext.experiments.summary import FAILURES, Summary, best_first, clock_of, curve_of

_POINTS = 101  # of profiles, and of curves over several environments


@dataclass(frozen=True)
class Band:
    """A curve with its interval.

    :param x: (k,)
    :param middle: (k,)
    :param low: (k,) NaN where there is no interval
    :param high: (k,)
    """

    x: Array
    middle: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Comparison:
    """Algorithms by environments.

    :param summaries: of all settings, in the order in which they are to be named
    :param references: environment id -> reference scores; aggregates over several environments need them all
    """

    summaries: Sequence[Summary]
    references: Mapping[str, Reference] = field(default_factory=dict)

    @cached_property
    def env_ids(self) -> list[str]:
        return list(dict.fromkeys(summary.env_id for summary in self.summaries))

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(summary.label for summary in self.summaries))

    @property
    def records(self) -> list[Record]:
        return [record for summary in self.summaries for record in summary.records]

    @cached_property
    def troubled(self) -> dict[str, list[Summary]]:
        """Label -> its summaries with failed runs, if there are any: what is said of it holds for the others alone."""
        found = [summary for summary in self.summaries if summary.failed]
        return {label: [s for s in found if s.label == label] for label in dict.fromkeys(s.label for s in found)}

    def name(self, label: str) -> str:
        """The label as it is named over all environments, with :data:`FAILURES` if a run failed in any."""
        return f"{label} {FAILURES}" if label in self.troubled else label

    def n_finished(self, label: str) -> int:
        """Finished runs in all environments together."""
        return sum(len(self.finals(label, env_id)) for env_id in self.env_ids)

    def within(self, env_id: str) -> list[Summary]:
        """The summaries of one environment, the best first."""
        return best_first(summary for summary in self.summaries if summary.env_id == env_id)

    @cached_property
    def _finals(self) -> dict[tuple[str, str], Array]:
        return {(s.label, s.env_id): np.array([r.final_return for r in s.finished]) for s in self.summaries}

    def finals(self, label: str, env_id: str) -> Array:
        """(n,) final returns of the finished runs."""
        return self._finals.get((label, env_id), np.empty(0))

    # --- within one environment

    @cached_property
    def curves(self) -> dict[tuple[str, str], Band]:
        """(label, environment) -> interquartile mean of the return over environment steps, of finished runs."""
        return {(s.label, s.env_id): band for s in self.summaries if (band := _curve(s)) is not None}

    @cached_property
    def clocks(self) -> dict[tuple[str, str], Band]:
        """The same over seconds of training. A run that has ended stays where it was."""
        return {(s.label, s.env_id): band for s in self.summaries if (band := _clock(s)) is not None}

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Environment -> its pairs of algorithms, the better one of each first."""
        return {e: compare_pairs({s.label: self.finals(s.label, e) for s in self.within(e)}) for e in self.env_ids}

    @cached_property
    def profiles(self) -> dict[str, dict[str, Band]]:
        """Environment -> label -> share of runs above each return."""
        return {env_id: self._profiles({s.label: [self.finals(s.label, env_id)] for s in self.within(env_id)})
                for env_id in self.env_ids}  # fmt: skip

    def _profiles(self, strata: Mapping[str, Sequence[Array]]) -> dict[str, Band]:
        known = {label: scores for label, scores in strata.items() if scores and all(map(len, scores))}
        if not known:
            return {}
        every = np.concatenate([each for scores in known.values() for each in scores])
        room = 0.02 * (every.max() - every.min()) or 1.0
        taus = np.linspace(every.min() - room, every.max() + room, _POINTS)
        return {label: Band(taus, *performance_profile(scores, taus)) for label, scores in known.items()}

    # --- over all environments

    @property
    def several(self) -> bool:
        """Whether there is more than one environment."""
        return len(self.env_ids) > 1

    @cached_property
    def without_reference(self) -> list[str]:
        """The environments whose scores cannot be normalised."""
        return [env_id for env_id in self.env_ids if env_id not in self.references]

    @property
    def normalised(self) -> bool:
        """Whether scores of all environments can be put together."""
        return not self.without_reference

    @cached_property
    def complete(self) -> list[str]:
        """Labels with a finished run in every environment: only they compare over all of them."""
        return [label for label in self.labels if all(len(self.finals(label, env_id)) for env_id in self.env_ids)]

    @cached_property
    def scores(self) -> dict[str, list[Array]]:
        """Complete label -> normalised final returns, one array per environment; empty without all references."""
        if not self.normalised:
            return {}
        found = {label: [self._normalised(e, self.finals(label, e)) for e in self.env_ids] for label in self.complete}
        return dict(sorted(found.items(), key=lambda item: -float(AGGREGATES["IQM"](*item[1]))))

    def _normalised(self, env_id: str, returns: Any) -> Array:
        return normalise(returns, *self.references[env_id])

    @cached_property
    def aggregates(self) -> dict[str, dict[str, Estimate]]:
        """Label -> name of :data:`AGGREGATES` -> estimate, the best interquartile mean first."""
        return {
            label: {name: stratified_interval(strata, statistic) for name, statistic in AGGREGATES.items()}
            for label, strata in self.scores.items()
        }

    @cached_property
    def profile(self) -> dict[str, Band]:
        """Label -> share of runs above each normalised score, in the mean of all environments."""
        return self._profiles(self.scores)

    @cached_property
    def improvement(self) -> dict[tuple[str, str], Estimate]:
        """(A, B) -> P(A > B), in the mean of all environments, both ways round."""
        found: dict[tuple[str, str], Estimate] = {}
        for number, first in enumerate(self.complete):
            for second in self.complete[number + 1 :]:
                a, b = ([self.finals(label, env_id) for env_id in self.env_ids] for label in (first, second))
                found[first, second] = probability_of_improvement(a, b)
                found[second, first] = _reversed(found[first, second])
        return found

    @cached_property
    def ranking(self) -> list[str]:
        """The complete labels, those first that are most probably better than the others."""
        totals = {label: 0.0 for label in self.complete}
        for (label, _), estimate in self.improvement.items():
            totals[label] += estimate.point
        return sorted(totals, key=lambda label: -totals[label])

    @cached_property
    def efficiency(self) -> dict[str, Band]:
        """Label -> interquartile mean of the normalised return over the share of the budget."""
        return {label: band for label in self.scores if (band := self._efficiency(label)) is not None}

    def _efficiency(self, label: str) -> Band | None:
        shares = np.linspace(0, 1, _POINTS)
        summaries = [summary for summary in self.summaries if summary.label == label]
        strata = [
            self._normalised(s.env_id, _interpolated(s.with_curve, shares * s.records[0].spec.total_steps))
            for s in summaries
            if s.with_curve
        ]
        if len(strata) < len(self.env_ids):
            return None
        known = shares >= max(_first_share(record) for summary in summaries for record in summary.with_curve)
        return Band(shares, *(np.where(known, each, np.nan) for each in curve_band(*strata)))


def _first_share(record: Record) -> float:
    """Of the budget, at which the curve begins: before it nothing is known of an imported run."""
    return record.evaluations[0].step / record.spec.total_steps


def _curve(summary: Summary) -> Band | None:
    records = summary.with_curve
    if not records:
        return None
    steps = np.unique(np.concatenate([curve_of(record)[0] for record in records]))
    return Band(steps, *curve_band(_interpolated(records, steps)))


def _clock(summary: Summary) -> Band | None:
    clocks = [clock_of(record) for record in summary.with_curve if record.outcome is not None]
    if not clocks:
        return None
    end = max(seconds[-1] for seconds, _ in clocks)
    # Evenly spread on either axis, so that the early part of a slow method is there on a logarithmic one.
    seconds = np.unique([*np.linspace(0, end, _POINTS), *np.geomspace(end / 1000, end, _POINTS)])
    return Band(seconds, *curve_band(np.stack([np.interp(seconds, *clock) for clock in clocks])))


def _interpolated(records: Sequence[Record], steps: Any) -> Array:
    """(n, k) return of every run at k steps; before its first and after its last evaluation it is as it was there."""
    return np.stack([np.interp(steps, *curve_of(record)) for record in records])


def _reversed(estimate: Estimate) -> Estimate:
    return Estimate(1 - estimate.point, 1 - estimate.high, 1 - estimate.low)
