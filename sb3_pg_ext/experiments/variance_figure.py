"""How much single estimates scatter: score-function and pathwise estimators of one vector, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.diagnostics.laboratory import AtSize, Measurement

#: Kind of estimator -> colour, marker, and what it differentiates. Both are told apart without colours as well.
KINDS = {
    "score_function": ("#D55E00", "o", "score function: differentiates log π(a|s)"),
    "pathwise": ("#0072B2", "D", "pathwise: differentiates through the action"),
}
#: Targets that are compared, each in a panel of its own.
PANELS = {"gradient": "estimates of ∇J", "gradient_undiscounted_states": "estimates of ∇J without γᵗ"}


class Scatter(NamedTuple):
    """The variance of an estimate from one episode, summed over all parameters, as a share of |target|^2.

    :param low: lower end of its 95 % confidence interval
    :param high: and the upper one
    """

    value: float
    low: float
    high: float


def scatter(found: Measurement, size: AtSize) -> Scatter:
    """Of estimates that are means over independent episodes: M times the variance of one from M of them.

    The interval is that of the logarithm, whose standard error is the relative one of the variance.
    """
    value = size.episodes * size.variance / (found.target_length * found.gradient_length) ** 2
    factor = math.exp(1.96 * size.variance_error / size.variance)
    return Scatter(value, value / factor, value * factor)


def comparable(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Target -> its unbiased estimators of both kinds, from episodes of the policy itself, the noisiest first.

    Only those of the testbed where both kinds are; empty where there is none.
    """
    found: dict[str, list[Measurement]] = {}
    for target in PANELS:
        for bed in dict.fromkeys(one.testbed for one in measurements):
            here = [one for one in measurements if one.testbed == bed and _takes_part(one, target)]
            if {one.claim.kind for one in here} == set(KINDS):
                found[target] = sorted(here, key=lambda one: -scatter(one, one.sizes[-1]).value)
    return found


def _takes_part(one: Measurement, target: str) -> bool:
    claim, noisy = one.claim, one.sizes[-1].variance > 0
    own_policy = not claim.estimate.startswith("at_another_policy")
    return noisy and own_policy and claim.target == target and claim.holds == "mean" and claim.kind in KINDS


def draw_variances(measurements: Sequence[Measurement], path: Path) -> bool:
    """Write the figure, unless there is nothing to compare.

    :return: whether there is
    :raises ModuleNotFoundError: matplotlib is not installed
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = comparable(measurements)
    if not panels:
        return False
    rows = max(map(len, panels.values()))
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), 0.27 * rows + 1.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axis, (target, estimators) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, estimators, PANELS[target], rows)
    _limit(axes, [scatter(one, one.sizes[-1]) for each in panels.values() for one in each])
    first = next(iter(panels.values()))[0]
    size = first.sizes[-1]
    figure.supxlabel(
        "variance of the gradient from one episode, summed over all parameters, / squared length of the exact vector\n"
        f"testbed {first.testbed}, {size.repeats} estimates of each kind, every one from {size.steps:,} environment "
        f"steps ({size.episodes} episodes); bars: 95 % intervals",
        fontsize=9,
    )
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9.5)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    return True


def _draw_panel(axis: Any, estimators: Sequence[Measurement], title: str, n_rows: int) -> None:
    for kind, (colour, marker, label) in KINDS.items():
        rows = [(y, scatter(one, one.sizes[-1])) for y, one in enumerate(estimators) if one.claim.kind == kind]
        values = [point.value for _, point in rows]
        bars = [[point.value - point.low for _, point in rows], [point.high - point.value for _, point in rows]]
        style = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3, "markersize": 6}
        axis.errorbar(values, [y for y, _ in rows], xerr=bars, label=label, **style)
        for y, point in rows:
            axis.text(
                point.high * 1.12,
                y,
                f"{point.value:.{int(point.value < 10)}f}",
                va="center",
                fontsize=8,
                color="#333333",
            )
    axis.set_yticks(range(len(estimators)), [f"{one.algorithm}  {one.claim.name}" for one in estimators])
    for label, one in zip(axis.get_yticklabels(), estimators, strict=True):
        label.set_color(KINDS[one.claim.kind][0])
    axis.set_ylim(n_rows - 0.4, -0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axis.grid(axis="x", which="both", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.tick_params(which="both", labelsize=8.5, length=0)


def _limit(axes: Sequence[Any], scatters: Sequence[Scatter]) -> None:
    """From below all intervals to the right of all numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in axes:
        axis.set_xlim(min(one.low for one in scatters) / 1.3, 2.2 * max(one.high for one in scatters))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
