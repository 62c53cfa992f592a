"""``python -m benchmarks.runner``: what a study costs beside the work of its runs.

40 short runs of PPO on CartPole-v1, one at a time on each core, as ``sb3-pg compare`` has them done: a process for
each, claims, heartbeats and evaluations in the store. What is not training or evaluation is overhead: starting
processes, imports, building and saving models, waiting for the store, looking after workers, cores that are idle. It is
given as a share of the time of training. Exit 1 if the target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.executor import LocalProcesses, usable_cores, warm_up
from sb3_pg_ext.experiments.run_spec import Protocol
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.study import Problem, Study, carry_out
from sb3_pg_ext.experiments.variants import read_variant

TARGET = 0.03


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock.

    :param cores: of all cores together, from the first submitted run to the end of the last
    :param training: of all runs
    :param evaluation: of all runs
    """

    cores: float
    training: float
    evaluation: float

    @property
    def overhead(self) -> float:
        """Time of the cores that is neither, as a share of the time of training."""
        return (self.cores - self.training - self.evaluation) / self.training


class Silence:
    """Watches without a word."""

    def look(self, rows: Any) -> None:
        pass


def measure(n_runs: int, total_steps: int, jobs: int, folder: Path) -> Cost:
    """Carry out a study of ``n_runs`` runs in ``folder``."""
    problem = Problem("CartPole-v1", total_steps, Protocol(total_steps // 4, episodes=5, test_episodes=0))
    runs = Study([read_variant("ppo")], [problem], n_runs).runs()
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(runs)
        began = time.perf_counter()
        carry_out(runs, store, LocalProcesses(store, jobs), Silence())
        cores = jobs * (time.perf_counter() - began)
        done = [record for record in store.records() if record.outcome is not None]
    if len(done) < n_runs:
        raise RuntimeError(f"{n_runs - len(done)} of {n_runs} runs have failed")
    training = sum(record.outcome.train_seconds for record in done if record.outcome)
    return Cost(cores, training, sum(evaluation.seconds for record in done for evaluation in record.evaluations))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runner", description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=16_384, help="of each run")
    parser.add_argument("--jobs", type=int, default=usable_cores())
    arguments = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.jobs, 1, arguments.jobs, Path(folder, "warm"))  # the imports are paid once
        cost = measure(arguments.runs, arguments.steps, arguments.jobs, Path(folder, "measured"))
    busy = os.getloadavg()[0]
    print(f"{arguments.runs} runs of {arguments.steps:,} steps, {arguments.jobs} at once; load {busy:.1f}")
    print(f"cores {cost.cores:.1f} s    training {cost.training:.1f} s    evaluation {cost.evaluation:.1f} s")
    print(f"overhead {cost.overhead:.1%} of training; target {TARGET:.0%}: {_verdict(cost)}")
    return 0 if cost.overhead <= TARGET else 1


def _verdict(cost: Cost) -> str:
    return "met" if cost.overhead <= TARGET else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
