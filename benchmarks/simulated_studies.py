"""``python -m benchmarks.simulated_studies [--studies 2000]``: what the statistics of a report do in simulated studies.

Three tables, each of studies whose truth is known: how often 95 % intervals hold it, how often differences are found
that are none, and how often those that there are. Every study has a seed of its own, so that the same number of studies
gives the same figures. The standard error is sqrt(p (1 - p) / studies): of 2000 studies 0.5 % at p = 5 %.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sb3_pg_ext.experiments.statistics import (
    Design,
    Estimate,
    probability_of_improvement,
    rank_test,
    settle,
    stratified_interval,
)

Draw = Callable[[np.random.Generator, int], Any]
_PERMUTATIONS = 1008  # four times those of the first group; a tenth of what a report takes
_SEEDS = 25  # of each algorithm: five looks of five


def studies(n_studies: int) -> Iterator[np.random.Generator]:
    """A generator of random numbers for each study."""
    return (np.random.default_rng(seed) for seed in range(n_studies))


# --- intervals


def iqm_interval(generator: np.random.Generator, n: int, environments: int = 1) -> Estimate:
    """Of normal scores, whose interquartile mean is 0."""
    return stratified_interval(list(generator.normal(size=(environments, n))))


def improvement_interval(generator: np.random.Generator, n: int) -> Estimate:
    """Of two algorithms with the same normal scores, where P(A > B) is 1/2."""
    first, second = generator.normal(size=(2, 1, n))
    return probability_of_improvement(list(first), list(second))


def coverage(interval: Callable[[np.random.Generator], Estimate], truth: float, n_studies: int) -> float:
    """Share of studies whose interval holds ``truth``."""
    found = map(interval, studies(n_studies))
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


def coverages(n_studies: int) -> Iterator[tuple[str, float]]:
    """(what, coverage) of 95 % intervals."""
    for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30):
        yield f"IQM, {n} runs", coverage(partial(iqm_interval, n=n), 0.0, n_studies)
    yield "IQM, 3 environments of 3 runs", coverage(partial(iqm_interval, n=3, environments=3), 0.0, n_studies)
    for n in (2, 3, 4, 5, 10, 20, 30):
        yield f"P(A > B), {n} runs of each", coverage(partial(improvement_interval, n=n), 0.5, n_studies)


# --- differences that are none

SCORES: Mapping[str, Draw] = {
    "normal": lambda g, n: g.normal(size=(n, _SEEDS)),
    "exponential": lambda g, n: g.exponential(size=(n, _SEEDS)),
    "capped": lambda g, n: np.minimum(500, 480 + 60 * g.normal(size=(n, _SEEDS))),
    "two-valued": lambda g, n: g.choice([9.0, 500.0], size=(n, _SEEDS)),
}


def found(generator: np.random.Generator, draw: Callable[[np.random.Generator], Any]) -> set[tuple[int, int]]:
    """The pairs that the sequential test calls different, by the numbers of their algorithms."""
    scores = {str(number): row for number, row in enumerate(draw(generator))}
    decisions = settle(scores, Design(), _PERMUTATIONS, seed=int(generator.integers(2**32)))
    different = (decision for decision in decisions if decision.state == "different")
    return {(min(pair), max(pair)) for each in different if (pair := (int(each.first), int(each.second)))}


def share_found(draw: Callable[[np.random.Generator], Any], n_studies: int, pairs: Any = None) -> float:
    """Share of studies that call a pair different: any, or one of ``pairs``."""
    each = (found(generator, draw) for generator in studies(n_studies))
    return float(np.mean([bool(those if pairs is None else those & pairs) for those in each]))


def repeated(looks: Sequence[int], n_studies: int) -> float:
    """Share of studies of two equal algorithms with p < 0.05 in the test of Mann and Whitney at any of ``looks``."""
    both = (generator.normal(size=(2, _SEEDS)) for generator in studies(n_studies))
    return float(np.mean([any(rank_test(a[:n], b[:n]) < 0.05 for n in looks) for a, b in both]))


def errors(n_studies: int) -> Iterator[tuple[str, float]]:
    """(what, share of studies with an error) where no algorithm differs from another."""
    yield "p < 0.05 at 5, 10, 15, 20 or 25 seeds", repeated(range(5, 26, 5), n_studies)
    yield "p < 0.05 at any number of seeds from 5 to 25", repeated(range(5, 26), n_studies)
    for name, draw in SCORES.items():
        for n in (2, 3, 4, 6):
            yield f"sequential, {n} algorithms, {name}", share_found(partial(draw, n=n), n_studies)
    yield "sequential, 2 algorithms, one of 25 times the spread", share_found(_of_other_spread, n_studies)


def _of_other_spread(generator: np.random.Generator) -> Any:
    return generator.normal(size=(2, _SEEDS)) * np.array([[1.0], [25.0]])


# --- differences that there are


def _one_of_three(generator: np.random.Generator, shift: float) -> Any:
    return generator.normal(size=(3, _SEEDS)) + np.array([[shift], [0.0], [0.0]])


def powers(n_studies: int) -> Iterator[tuple[str, float]]:
    """(what, share of studies that find the difference between the first and the second of three)."""
    for shift in (1.0, 0.5):
        share = share_found(partial(_one_of_three, shift=shift), n_studies, pairs={(0, 1)})
        yield f"one of three algorithms, {shift:g} standard deviations above", share


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_studies", description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="of each row")
    n_studies = parser.parse_args().studies
    began = time.perf_counter()
    tables = {"held by a 95 % interval": coverages, "differences that are none": errors, "differences found": powers}
    for title, rows in tables.items():
        print(f"\n{title} ({n_studies} studies each)")
        for what, share in rows(n_studies):
            print(f"  {what:54s} {share:6.1%}   after {time.perf_counter() - began:5.0f} s", flush=True)


if __name__ == "__main__":
    main()
