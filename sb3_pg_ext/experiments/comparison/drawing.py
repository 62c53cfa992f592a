"""What the figures of a comparison show, each panel by itself. Matplotlib's axes are called panels here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.comparison.analysis import Band, Comparison
from sb3_pg_ext.experiments.figure import COLOURS, DASHES, FAINT, INK, short_number, tidy
from sb3_pg_ext.experiments.statistics import AGGREGATES, Array, Estimate
from sb3_pg_ext.experiments.summary import Summary, curve_of

_BOLD = 2.2
# Algorithms; with more, bands and single seeds step back, and the cells of a matrix have no room for intervals.
_FEW = 6
MANY = 12  # algorithms; with more, lines cannot be told apart, and only the best have a colour
OUTSTANDING = 7  # of many, those that have one
_SCALES_APART = 4.0  # ratio of times above which an axis is logarithmic
_NAME_HEIGHT = 0.07  # of the height of a panel
_LONGEST = 26  # characters of a label that are shown beside rows


def crowded(comparison: Comparison) -> bool:
    """Whether there are too many lines to be told apart."""
    return len(comparison.labels) > MANY


def colour_of(comparison: Comparison, label: str) -> str:
    """The colour of an algorithm in all figures."""
    return COLOURS[comparison.labels.index(label) % len(COLOURS)]


def dashes_of(comparison: Comparison, label: str) -> tuple[float, ...]:
    """Its dashes, in widths of the line."""
    return DASHES[comparison.labels.index(label) % len(DASHES)]


def _line(comparison: Comparison, label: str) -> dict[str, Any]:
    dashes = dashes_of(comparison, label)
    style: Any = (0, dashes) if dashes else "-"
    return {"color": colour_of(comparison, label), "linewidth": _BOLD, "linestyle": style, "label": label}


def _draw_band(panel: Any, comparison: Comparison, label: str, band: Band, **how: Any) -> None:
    alpha = 0.18 if len(comparison.labels) <= _FEW else 0.09
    panel.fill_between(band.x, band.low, band.high, color=colour_of(comparison, label), alpha=alpha, linewidth=0, **how)
    drawn = panel.step if how else panel.plot
    drawn(band.x, band.middle, **_line(comparison, label), **({"where": "post"} if how else {}))


def _draw_lines(panel: Any, comparison: Comparison, bands: Mapping[str, Band], **how: Any) -> None:
    """All of ``bands``, of which the best come first; of many, only these stand out, with their names at the side."""
    outstanding = _outstanding(comparison, list(bands))
    for label, band in reversed(list(bands.items())):  # the best is drawn last, on top
        if label in outstanding:
            _draw_band(panel, comparison, label, band, **how)
        else:
            (panel.step if how else panel.plot)(band.x, band.middle, color=FAINT, linewidth=0.8)
    if crowded(comparison) and not how:
        _name_ends(panel, {label: float(bands[label].middle[-1]) for label in outstanding}, comparison)


def _outstanding(comparison: Comparison, best_first: Sequence[str]) -> Sequence[str]:
    return best_first[:OUTSTANDING] if crowded(comparison) else best_first


def _name_ends(panel: Any, ends: Mapping[str, float], comparison: Comparison) -> None:
    """Names to the right of the panel, beside the ends of their lines."""
    low, high = panel.get_ylim()
    labels = sorted(ends, key=lambda label: ends[label])
    heights = apart([(ends[label] - low) / (high - low) for label in labels], _NAME_HEIGHT)
    for label, height in zip(labels, heights, strict=True):
        panel.annotate(shortened(label), (1.02, height), xycoords="axes fraction", va="center", fontsize=8,
                       color=colour_of(comparison, label), annotation_clip=False)  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> Array:
    """The ascending heights nearest to ``heights`` in squares that are at least ``gap`` apart, between 0 and 1."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(heights))
    free = isotonic_regression(np.asarray(heights) - steps).x
    return np.clip(free, 0, max(1 - gap * (len(heights) - 1), 0)) + steps


# --- over training


def draw_curves(panel: Any, comparison: Comparison, env_id: str) -> None:
    """Return over environment steps: interquartile mean bold, its band behind; of few algorithms every seed, thin."""
    summaries = comparison.within(env_id)
    outstanding = _outstanding(comparison, [summary.label for summary in summaries])
    for summary in reversed([summary for summary in summaries if summary.label in outstanding]):
        if not crowded(comparison):
            _draw_runs(panel, comparison, summary)
        if (summary.label, env_id) not in comparison.curves:
            panel.plot([], [], **_line(comparison, summary.label))  # for the legend
    labels = [summary.label for summary in summaries if (summary.label, env_id) in comparison.curves]
    _draw_lines(panel, comparison, {label: comparison.curves[label, env_id] for label in labels})
    panel.set_xlabel("training (environment steps)")
    panel.set_ylabel(_return_of_evaluations(comparison, env_id))
    panel.xaxis.set_major_formatter(lambda value, _: short_number(value))
    panel.margins(x=0.01)
    tidy(panel)


def _draw_runs(panel: Any, comparison: Comparison, summary: Summary) -> None:
    for record in summary.records:
        if len(record.evaluations) > 1:
            style = "-" if record.status == "finished" else ":"
            colour = colour_of(comparison, summary.label)
            alpha = 0.55 if len(comparison.labels) <= _FEW else 0.3
            panel.plot(*curve_of(record), color=colour, linewidth=0.8, alpha=alpha, linestyle=style)


def _return_of_evaluations(comparison: Comparison, env_id: str) -> str:
    protocol = comparison.within(env_id)[0].records[0].spec.protocol
    how = "deterministic" if protocol.deterministic else "stochastic"
    return f"return per episode\n(mean of {protocol.episodes} {how} episodes)"


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
    panel.set_xlabel("training (share of the environment steps)")
    panel.set_ylabel("normalised return (0: low, 1: high)")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.margins(x=0.01)
    tidy(panel)


# --- after training


def draw_finals(panel: Any, comparison: Comparison, env_id: str) -> None:
    """The final return of every run as a dot; interquartile mean and its interval."""
    summaries = comparison.within(env_id)[::-1]
    for row, summary in enumerate(summaries):
        colour, finals = colour_of(comparison, summary.label), np.sort(comparison.finals(summary.label, env_id))
        heights = row + 0.22 * np.cos(np.pi * np.arange(len(finals)))  # alternately above and below, told apart
        panel.scatter(finals, heights, color=colour, s=16, alpha=0.65, linewidths=0)
        _draw_estimate(panel, summary.final, row, colour)
    _set_rows(panel, [summary.label for summary in summaries])
    panel.set_xlabel("final return per episode")
    panel.margins(x=0.04)


def _draw_estimate(panel: Any, estimate: Estimate | None, row: float, colour: str) -> None:
    if estimate is None:
        panel.annotate("no finished run", (0.5, row), xycoords=("axes fraction", "data"), color=FAINT, fontsize=8,
                       ha="center", va="center")  # fmt: skip
        return
    panel.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    panel.plot([estimate.point], [row], marker="|", markersize=13, markeredgewidth=2.6, color=colour)


def _set_rows(panel: Any, labels: Sequence[str]) -> None:
    panel.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    panel.set_ylim(-0.6, len(labels) - 0.4)
    tidy(panel)
    panel.grid(axis="y", visible=False)


def shortened(label: str) -> str:
    """``label``, not longer than there is room beside a row."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def draw_aggregate(panel: Any, comparison: Comparison, name: str) -> None:
    """One of the aggregates with its interval, for every algorithm."""
    labels = list(comparison.aggregates)[::-1]
    for row, label in enumerate(labels):
        _draw_estimate(panel, comparison.aggregates[label][name], row, colour_of(comparison, label))
    _set_rows(panel, labels)
    panel.set_xlabel("normalised return below 1" if name == list(AGGREGATES)[-1] else "normalised return")


def draw_profiles(panel: Any, comparison: Comparison, profiles: Mapping[str, Band], unit: str) -> None:
    """Share of runs above each score."""
    _draw_lines(panel, comparison, profiles, step="post")
    panel.set_xlabel(unit)
    panel.set_ylabel("share of runs above")
    panel.set_ylim(-0.02, 1.03)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.margins(x=0)
    tidy(panel)


def draw_improvement(panel: Any, comparison: Comparison) -> None:
    """P(row > column) as a matrix: blue above one half, red below, the stronger the further from it."""
    from matplotlib.patches import Rectangle

    labels = comparison.ranking
    few = len(labels) <= _FEW
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
    panel.set_xticks(range(len(labels)), map(shortened, labels), rotation=30, ha="right")
    panel.set_yticks(range(len(labels)), map(shortened, labels))
    panel.set_xlabel("than this")
    panel.set_ylabel("this is better")
