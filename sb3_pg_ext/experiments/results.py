"""What a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sb3_pg_ext.experiments.run_spec import RunSpec

Kind = Literal["training", "test"]
Status = Literal["pending", "running", "finished", "failed"]


class Reference(NamedTuple):
    """Returns that stand for 0 and 1 when scores of different environments are put together.

    :param low: such as the mean return of a random policy
    :param high: such as that of a policy that is considered good
    """

    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Outcome of some episodes.

    :param step: environment steps of training before it
    :param returns: undiscounted sums of rewards, one per episode
    :param lengths: steps of the same episodes
    :param seconds: wall-clock time that it took
    :param train_seconds: wall-clock time of training before it, without evaluations; ``None`` if it is not known
    """

    step: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    seconds: float
    train_seconds: float | None = None

    @property
    def mean_return(self) -> float:
        """Mean over the episodes."""
        return sum(self.returns) / len(self.returns)


@dataclass(frozen=True)
class Outcome:
    """What a finished run cost.

    :param steps: environment steps of training
    :param wall_seconds: from the start of the run to its end
    :param cpu_seconds: of its process
    :param train_seconds: wall-clock time without evaluations and set-up
    """

    steps: int
    wall_seconds: float
    cpu_seconds: float
    train_seconds: float

    @property
    def steps_per_second(self) -> float:
        """Speed of training, learning included."""
        return self.steps / max(self.train_seconds, 1e-9)


@dataclass(frozen=True)
class Record:
    """A run and how far it has come.

    :param step: environment steps so far
    :param deaths: how many workers have died over it
    :param error: why it failed
    :param evaluations: during training, in the order of their steps
    :param test: after training; ``None`` if there was none, or not yet
    """

    spec: RunSpec
    status: Status
    step: int
    deaths: int
    error: str | None
    outcome: Outcome | None
    provenance: Mapping[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    test: Evaluation | None

    @property
    def final_return(self) -> float:
        """Mean return of the test, or of the last evaluation if there was no test."""
        return (self.test or self.evaluations[-1]).mean_return
