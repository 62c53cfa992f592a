"""Measure several lanes in turn, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Lane:
    """One thing to measure: ``work()`` does some env steps and returns how many."""

    name: str
    work: Callable[[], int]
    rates: list[float] = field(default_factory=list)

    def measure(self) -> None:
        start = time.process_time()
        steps = self.work()
        self.rates.append(steps / (time.process_time() - start))

    @property
    def median(self) -> float:
        """Env steps per CPU second."""
        return statistics.median(self.rates)


def rounds(lanes: list[Lane], n_rounds: int) -> None:
    """One unmeasured round to warm up, then ``n_rounds`` measured ones, all lanes in turn."""
    for lane in lanes:
        lane.work()
    for _ in range(n_rounds):
        for lane in lanes:
            lane.measure()


def ratio(lane: Lane, other: Lane) -> float:
    """Median over rounds of the ratio of the two rates in the same round."""
    return statistics.median(a / b for a, b in zip(lane.rates, other.rates, strict=True))
