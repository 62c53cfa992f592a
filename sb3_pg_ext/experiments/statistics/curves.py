"""Numbers of one learning curve."""

from __future__ import annotations

from typing import Any

import numpy as np


def area_under_curve(steps: Any, returns: Any, total_steps: float) -> float:
    """Mean height of a learning curve by the trapezoidal rule, so that it is in units of return.

        1 / (s_k - s_0)  integral_{s_0}^{s_k}  R(s) ds,   s_k = total_steps

    :param steps: (k,) increasing environment steps
    :param returns: (k,) mean return at each
    :param total_steps: where the curve is cut, or continued with its last value
    :raises ValueError: fewer than two points
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"steps and returns have {len(x)} and {len(y)} points: the same number, at least 2, is needed")
    end = float(total_steps)
    inside = x < end
    x_cut, y_cut = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y_cut, x_cut) / (end - x_cut[0]))
