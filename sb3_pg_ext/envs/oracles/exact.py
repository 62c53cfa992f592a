"""What the oracles share: double precision, and which task is meant."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch


class Task(Protocol):
    """The part of a problem's record that its objective needs."""

    @property
    def horizon(self) -> int | None: ...

    @property
    def gamma(self) -> float: ...


def exact(x: Any) -> torch.Tensor:
    """``x`` in float64 on the CPU; the history of a tensor is kept."""
    if isinstance(x, torch.Tensor):
        return x.to("cpu", torch.float64)
    return torch.tensor(np.asarray(x, dtype=np.float64))


def horizon_and_gamma(task: Task, horizon: float | None, gamma: float | None) -> tuple[float, float]:
    """The horizon (``math.inf`` for none) and the discount that are meant: those given, or the task's own.

    :raises ValueError: the horizon is no positive whole number, or the discount is outside (0, 1]
    """
    horizon = task.horizon if horizon is None else horizon
    horizon = math.inf if horizon is None else horizon
    gamma = task.gamma if gamma is None else gamma
    if horizon < 1 or (horizon != math.inf and horizon != int(horizon)):
        raise ValueError(f"horizon={horizon}: allowed are positive whole numbers and math.inf")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma}: allowed are numbers in (0, 1]")
    return horizon, gamma


def steps(horizon: float) -> range:
    """``range(horizon)``, for a finite horizon."""
    return range(int(horizon))
