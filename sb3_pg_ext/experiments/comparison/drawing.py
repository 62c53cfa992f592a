"""What the figures of a comparison show, each panel by itself. Matplotlib's axes are called panels here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.comparison.analysis import Band, Comparison
from sb3_pg_ext.experiments.comparison.looks import Look, crowded, looks, shortened
from sb3_pg_ext.experiments.figure import COLOURS, FAINT, INK, short_number, tidy
from sb3_pg_ext.experiments.statistics import AGGREGATES, Array, Estimate
from sb3_pg_ext.experiments.summary import FAILURES, curve_of

_BOLD = 2.2
# Algorithms; with more, bands and single seeds step back, and the cells of a matrix have no room for intervals.
FEW = 6
_SCALES_APART = 4.0  # ratio of times above which an axis is logarithmic
_NAME_HEIGHT = 0.07  # of the height of a panel
_SAMPLE, _NAME = (1.02, 1.085), 1.1  # where the samples of lines and their names are, of the width of a panel


def _line(label: str, look: Look) -> dict[str, Any]:
    return {**look.style, "linewidth": _BOLD if look.outstanding else 0.8, "label": label}


def _draw_band(panel: Any, band: Band, line: dict[str, Any], alpha: float, **how: Any) -> None:
    panel.fill_between(band.x, band.low, band.high, color=line["color"], alpha=alpha, linewidth=0, **how)
    drawn = panel.step if how else panel.plot
    drawn(band.x, band.middle, **line, **({"where": "post"} if how else {}))


def _draw_lines(panel: Any, comparison: Comparison, bands: Mapping[str, Band], **how: Any) -> None:
    """All of ``bands``, of which the best come first; of many, only these stand out, with their names at the side."""
    found = looks(comparison, list(bands))
    alpha = 0.18 if len(comparison.labels) <= FEW else 0.09
    for label, band in reversed(list(bands.items())):  # the best is drawn last, on top
        if found[label].outstanding:
            _draw_band(panel, band, _line(label, found[label]), alpha, **how)
        else:
            (panel.step if how else panel.plot)(band.x, band.middle, color=found[label].colour, linewidth=0.8)


def _name_ends(panel: Any, comparison: Comparison, bands: Mapping[str, Band], by_height: bool = True) -> None:
    """Of many lines, the names of the best to the right of the panel, each with a sample of its line.

    :param by_height: beside the ends of their lines; otherwise the best on top, as where all lines end alike
    """
    if not crowded(comparison):
        return
    named = [(label, look) for label, look in looks(comparison, list(bands)).items() if look.outstanding]
    wanted = [1.0 - _NAME_HEIGHT * place for place in range(len(named))]
    if by_height:
        low, high = panel.get_ylim()
        wanted = [(float(bands[label].middle[-1]) - low) / (high - low) for label, _ in named]
    order = sorted(range(len(named)), key=lambda place: (wanted[place], -place))
    for number, height in zip(order, apart([wanted[n] for n in order], _NAME_HEIGHT), strict=True):
        label, look = named[number]
        panel.plot(_SAMPLE, (height, height), transform=panel.transAxes, clip_on=False, linewidth=_BOLD, **look.style)
        panel.annotate(shortened(label), (_NAME, height), xycoords="axes fraction", va="center", fontsize=8,
                       color=INK, annotation_clip=False)  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> Array:
    """The ascending heights nearest to ``heights`` in squares that are at least ``gap`` apart, between 0 and 1."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(heights))
    free = isotonic_regression(np.asarray(heights) - steps).x
    return np.clip(free, 0, max(1 - gap * (len(heights) - 1), 0)) + steps


# --- over training


def draw_curves(panel: Any, comparison: Comparison, env_id: str) -> None:
    """Return over environment steps: interquartile mean bold, its band behind; of few algorithms every seed, thin."""
    if not crowded(comparison):
        _draw_single_runs(panel, comparison, env_id)
    known = [s.label for s in comparison.within(env_id) if (s.label, env_id) in comparison.curves]
    bands = {label: comparison.curves[label, env_id] for label in known}
    _draw_lines(panel, comparison, bands)
    _name_ends(panel, comparison, bands)
    panel.set_xlabel("training (environment steps)")
    panel.set_ylabel(_return_of_evaluations(comparison, env_id))
    panel.xaxis.set_major_formatter(lambda value, _: short_number(value))
    panel.margins(x=0.01)
    tidy(panel)


def _draw_single_runs(panel: Any, comparison: Comparison, env_id: str) -> None:
    summaries = comparison.within(env_id)
    found = looks(comparison, [summary.label for summary in summaries])
    alpha = 0.55 if len(comparison.labels) <= FEW else 0.3
    for summary in reversed(summaries):
        for record in summary.records:
            if len(record.evaluations) > 1:
                panel.plot(*curve_of(record), color=found[summary.label].colour, linewidth=0.8, alpha=alpha,
                           linestyle="-" if record.status == "finished" else ":")  # fmt: skip
        if (summary.label, env_id) not in comparison.curves:
            panel.plot([], [], **_line(summary.label, found[summary.label]))  # for the legend


def _return_of_evaluations(comparison: Comparison, env_id: str) -> str:
    records = [record for summary in comparison.within(env_id) for record in summary.records]
    kinds = {(r.spec.protocol.episodes, r.spec.protocol.deterministic, r.spec.origin is None) for r in records}
    if len(kinds) > 1:
        return "return per episode\n(evaluations of different kinds)"
    ((episodes, deterministic, _),) = kinds
    how = "deterministic" if deterministic else "stochastic"
    return f"return per episode\n(mean of {episodes} {how} episodes)"


def draw_clock(panel: Any, comparison: Comparison, env_id: str) -> None:
    """The same over time: what the runs had reached after so many seconds."""
    timed = {
        summary.label: comparison.clocks[summary.label, env_id]
        for summary in comparison.within(env_id)
        if (summary.label, env_id) in comparison.clocks
    }
    ends = [band.x[-1] for band in timed.values()]
    logarithmic = bool(ends) and max(ends) > _SCALES_APART * min(ends)
    bands = {label: _after_start(band) if logarithmic else band for label, band in timed.items()}
    _draw_lines(panel, comparison, bands)
    _name_ends(panel, comparison, bands)
    if logarithmic:
        _set_logarithmic(panel)
    panel.xaxis.set_major_formatter(lambda value, _: short_number(value))
    panel.set_xlabel("time of training without evaluations (s)")
    panel.set_ylabel("return per episode")
    tidy(panel)


def _after_start(band: Band) -> Band:
    """Without time zero, which has no place on a logarithmic axis."""
    return Band(*(each[band.x > 0] for each in (band.x, band.middle, band.low, band.high)))


def _set_logarithmic(panel: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(numticks=8, subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    panel.xaxis.set_minor_locator(NullLocator())


def draw_efficiency(panel: Any, comparison: Comparison) -> None:
    """Interquartile mean of the normalised return over the share of the budget."""
    _draw_lines(panel, comparison, comparison.efficiency)
    _name_ends(panel, comparison, comparison.efficiency)
    panel.set_xlabel("training (share of the environment steps)")
    panel.set_ylabel("normalised return (0: low, 1: high)")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.margins(x=0.01)
    tidy(panel)


# --- after training


def draw_finals(panel: Any, comparison: Comparison, env_id: str) -> None:
    """The final return of every run as a dot; interquartile mean and its interval."""
    summaries = comparison.within(env_id)[::-1]
    found = looks(comparison, [summary.label for summary in summaries][::-1])
    for row, summary in enumerate(summaries):
        colour, finals = found[summary.label].colour, np.sort(comparison.finals(summary.label, env_id))
        heights = row + 0.22 * np.cos(np.pi * np.arange(len(finals)))  # alternately above and below, told apart
        panel.scatter(finals, heights, color=colour, s=16, alpha=0.65, linewidths=0)
        _draw_estimate(panel, summary.final, row, colour)
    _set_rows(panel, [_marked(summary.label, summary.failed) for summary in summaries])
    panel.set_xlabel("final return per episode")
    panel.margins(x=0.04)
    panel.locator_params(axis="x", nbins=5)  # there is less room beside long names


def _draw_estimate(panel: Any, estimate: Estimate | None, row: float, colour: str) -> None:
    if estimate is None:
        panel.annotate("no finished run", (0.5, row), xycoords=("axes fraction", "data"), color=FAINT, fontsize=8,
                       ha="center", va="center")  # fmt: skip
        return
    panel.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    panel.plot([estimate.point], [row], marker="|", markersize=13, markeredgewidth=2.6, color=colour)


def _set_rows(panel: Any, labels: Sequence[str]) -> None:
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(-0.6, len(labels) - 0.4)
    tidy(panel)
    panel.grid(axis="y", visible=False)


def _marked(label: str, failed: Any) -> str:
    """The shortened label, marked if it has failed runs."""
    return f"{shortened(label)} {FAILURES}" if failed else shortened(label)


def draw_aggregate(panel: Any, comparison: Comparison, name: str) -> None:
    """One of the aggregates with its interval, for every algorithm."""
    labels = list(comparison.aggregates)[::-1]
    found = looks(comparison, labels[::-1])
    for row, label in enumerate(labels):
        _draw_estimate(panel, comparison.aggregates[label][name], row, found[label].colour)
    _set_rows(panel, [_marked(label, label in comparison.troubled) for label in labels])
    panel.set_xlabel("normalised return below 1" if name == list(AGGREGATES)[-1] else "normalised return")


def draw_profiles(panel: Any, comparison: Comparison, profiles: Mapping[str, Band], unit: str) -> None:
    """Share of runs above each score."""
    _draw_lines(panel, comparison, profiles, step="post")
    _name_ends(panel, comparison, profiles, by_height=False)
    panel.set_xlabel(unit)
    panel.set_ylabel("share of runs above")
    panel.set_ylim(-0.02, 1.03)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.margins(x=0)
    panel.locator_params(axis="x", nbins=5)
    tidy(panel)


def draw_improvement(panel: Any, comparison: Comparison) -> None:
    """P(row > column) as a matrix: blue above one half, red below, the stronger the further from it."""
    from matplotlib.patches import Rectangle

    labels = comparison.ranking
    few = len(labels) <= FEW
    for (first, second), estimate in comparison.improvement.items():
        row, column = labels.index(first), labels.index(second)
        colour = COLOURS[0] if estimate.point >= 0.5 else COLOURS[1]
        strength = 1.2 * abs(estimate.point - 0.5)
        panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=strength, linewidth=0))
        panel.text(column, row - 0.12 * few, f"{estimate.point:.2f}", ha="center", va="center", color=INK,
                   fontsize=9 if few else 7)  # fmt: skip
        if few and not np.isnan(estimate.low):
            interval = f"{estimate.low:.2f} – {estimate.high:.2f}"
            panel.text(column, row + 0.22, interval, ha="center", va="center", color=INK, fontsize=6.5)
    for number in range(len(labels)):
        panel.text(number, number, "–", ha="center", va="center", color=FAINT, fontsize=9)
    panel.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
    tidy(panel)
    panel.grid(visible=False)
    names = [_marked(label, label in comparison.troubled) for label in labels]
    panel.set_xticks(range(len(labels)), names, rotation=30, ha="right")
    panel.set_yticks(range(len(labels)), names)
    panel.set_xlabel("than this")
    panel.set_ylabel("this is better")
