"""Runs of one setting, summed up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sb3_pg_ext.experiments.progress import duration
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import Estimate, area_under_curve, stratified_interval

HEADER = (
    "algorithm",
    "final return [95 %]",
    "area under curve [95 %]",
    "worst seed",
    "steps/s",
    "wall time",
    "runs",
)
FAILURES = "†"  # beside the name of what has failed runs


@dataclass(frozen=True)
class Summary:
    """All runs of one algorithm in one environment.

    :param records: finished or not, by replicate
    :param final: interquartile mean of the final return over the finished runs; ``None`` without any
    :param area: the same of the area under the learning curve, in units of return; ``None`` as well if a curve does not
        begin at step 0, as those of imported runs may: without the bad beginning the area would be too large
    """

    label: str
    env_id: str
    records: tuple[Record, ...]
    final: Estimate | None
    area: Estimate | None

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.status == "finished"]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]

    @property
    def missing(self) -> list[Record]:
        """Neither finished nor failed."""
        return [record for record in self.records if record.status in ("pending", "running")]

    @property
    def imported(self) -> bool:
        """Whether all runs were made elsewhere."""
        return all_imported(self.records)

    @property
    def name(self) -> str:
        """The label, with :data:`FAILURES` if there are any: what is said of it holds for runs that do not fail."""
        return f"{self.label} {FAILURES}" if self.failed else self.label

    @property
    def with_curve(self) -> list[Record]:
        """Finished, and evaluated more than once."""
        return [record for record in self.finished if len(record.evaluations) > 1]

    @property
    def speed(self) -> float | None:
        """Environment steps per second of training, median over the finished runs."""
        speeds = [record.outcome.steps_per_second for record in self.finished if record.outcome is not None]
        return float(np.median(speeds)) if speeds else None

    def row(self) -> tuple[str, ...]:
        """Text for the columns of :data:`HEADER`."""
        outcomes = [record.outcome for record in self.finished if record.outcome is not None]
        wall = duration(float(np.median([o.wall_seconds for o in outcomes]))) if outcomes else "–"
        return (
            self.name,
            estimate_text(self.final),
            estimate_text(self.area),
            number(min(record.final_return for record in self.finished)) if self.finished else "–",
            "–" if self.speed is None else f"{self.speed:,.0f}",
            wall,
            self._count_text(),
        )

    def _count_text(self) -> str:
        return f"{len(self.finished)}{self._troubles(', ')}"

    @property
    def counts(self) -> str:
        """``3 of 10 runs; 7 failed``."""
        return f"{len(self.finished)} of {len(self.records)} runs{self._troubles('; ')}"

    def _troubles(self, between: str) -> str:
        counts = ((len(self.failed), "failed"), (len(self.missing), "missing"))
        return "".join(f"{between}{n} {what}" for n, what in counts if n)


def all_imported(records: Iterable[Record]) -> bool:
    """Whether all these runs were made elsewhere."""
    return all(record.spec.origin is not None for record in records)


def summarise(records: Iterable[Record]) -> list[Summary]:
    """One summary per label and environment, in the order of the records."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.spec.environment.id, record.spec.label), []).append(record)
    return [_summary(label, env_id, group) for (env_id, label), group in groups.items()]


def _summary(label: str, env_id: str, records: Sequence[Record]) -> Summary:
    finished = [record for record in records if record.status == "finished"]
    finals = [record.final_return for record in finished]
    whole = all(curve_of(record)[0][0] == 0 for record in finished)
    areas = [area_under_curve(*curve_of(r), r.spec.total_steps) for r in finished if whole]
    return Summary(
        label,
        env_id,
        tuple(records),
        stratified_interval([finals]) if finals else None,
        stratified_interval([areas]) if areas else None,
    )


def curve_of(record: Record) -> tuple[list[int], list[float]]:
    """Environment steps and mean returns of the evaluations."""
    return [e.step for e in record.evaluations], [e.mean_return for e in record.evaluations]


def clock_of(record: Record) -> tuple[list[float], list[float]]:
    """Seconds of training and mean returns of the evaluations.

    Where the seconds were not taken down, they are those of a run that was equally fast all the time.
    """
    seconds = [e.train_seconds for e in record.evaluations if e.train_seconds is not None]
    if len(seconds) < len(record.evaluations):
        speed = record.outcome.steps_per_second if record.outcome else math.nan
        seconds = [e.step / speed for e in record.evaluations]
    return seconds, [e.mean_return for e in record.evaluations]


def best_first(summaries: Iterable[Summary]) -> list[Summary]:
    """By final return, those without any at the end."""
    return sorted(summaries, key=lambda s: -math.inf if s.final is None else s.final.point, reverse=True)


def best_of(summaries: Iterable[Summary]) -> list[Summary]:
    """All that share the highest final return, as it is written; what has failed runs is not among them."""
    ranked = [(s, number(s.final.point)) for s in best_first(summaries) if s.final is not None and not s.failed]
    return [summary for summary, written in ranked if written == ranked[0][1]]


def estimate_text(estimate: Estimate | None) -> str:
    """``point [low, high]``, with as many decimals as the interval has use for."""
    if estimate is None:
        return "–"
    if math.isnan(estimate.low):
        return f"{number(estimate.point)} [one run]"
    point, low, high = (point_text(estimate, value) for value in (estimate.point, estimate.low, estimate.high))
    return f"{point} [{low}, {high}]"


def point_text(estimate: Estimate, value: float | None = None) -> str:
    """The point estimate, or ``value`` in its place, to the second digit of the width of the interval."""
    value = estimate.point if value is None else value
    largest, width = max(map(abs, (estimate.point, estimate.low, estimate.high))), estimate.high - estimate.low
    if not (width > 1e-9 * largest and 1e-3 <= largest < 1e7):
        return number(value)
    decimals = max(0, min(_decimals(largest), 1 - math.floor(math.log10(width))))
    return f"{value:z,.{decimals}f}"


def probability_text(estimate: Estimate) -> str:
    """``0.75 [0.38, 1.00]``."""
    if math.isnan(estimate.low):
        return f"{estimate.point:.2f} [one run]"
    return f"{estimate.point:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def p_value_text(value: float) -> str:
    """Three decimals; never a chance of nothing."""
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def number(value: float) -> str:
    """Four significant digits or whole numbers, whichever says more; never in powers of ten for ordinary returns."""
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    """Of four significant digits, as far as they are worth it."""
    decimals = max(0, min(4, 3 - math.floor(math.log10(abs(value))))) if value else 0
    return min(decimals, 2 if abs(value) >= 1 else 4)
