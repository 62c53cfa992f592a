"""The figures of a comparison: which there are, how they are read, and how their panels stand together in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments import figure
from sb3_pg_ext.experiments.comparison import drawing
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import left_out
from sb3_pg_ext.experiments.figure import INK, Panel, new_figure, save
from sb3_pg_ext.experiments.statistics import AGGREGATES
from sb3_pg_ext.experiments.summary import number

_WIDTH = 11.0  # of panels side by side in a file, before they are scaled, in inches
_FILE_SCALE = 1.25
_REM_PER_INCH = 6.0  # so that the text of a picture is nearly as large as the captions
_KEY_OF_MANY = "bold: interquartile mean over seeds · band: 95 % bootstrap interval"
_KEY = "bold: interquartile mean over seeds · band: 95 % bootstrap interval · thin: single seeds (dotted: unfinished)"


@dataclass(frozen=True)
class Chart:
    """Pictures that belong together.

    :param name: of the files, without their ending
    :param title: above it
    :param caption: how it is read
    :param panels: one, or one for each environment
    :param size: of a panel on the page, in inches
    :param key: beneath the legend of a file; ``None`` if rows are named, so that there is no legend
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    size: tuple[float, float]
    key: str | None = None

    @property
    def single(self) -> bool:
        """Whether there is one panel, with the width of the page."""
        return len(self.panels) == 1


def charts(comparison: Comparison) -> list[Chart]:
    """All that the runs are good for, in the order of the page."""
    found = [_curves(comparison)]
    found += [_efficiency(comparison)] if comparison.several and comparison.efficiency else []
    found += [_finals(comparison)]
    found += [_aggregates(comparison)] if comparison.aggregates else []
    found += [_profiles(comparison)] if any(comparison.profiles.values()) else []
    found += [_improvement(comparison)] if comparison.improvement else []
    return [*found, _clock(comparison)] if comparison.clocks else found


def _size(n_panels: int) -> tuple[float, float]:
    """Of a panel that may stand alone, or beside others."""
    return (5.8, 3.4) if n_panels == 1 else (3.6, 2.7)


def _by_environment(comparison: Comparison, alt: str, draw: Callable[..., None]) -> list[Panel]:
    return [
        Panel(env_id, f"{env_id}: {alt} {_standing(comparison, env_id)}",
              partial(draw, comparison=comparison, env_id=env_id))
        for env_id in comparison.env_ids
    ]  # fmt: skip


def _standing(comparison: Comparison, env_id: str) -> str:
    known = [f"{s.label} {number(s.final.point)}" for s in comparison.within(env_id) if s.final is not None]
    return f"Final interquartile means: {', '.join(known) or 'none yet'}."


def _curves(comparison: Comparison) -> Chart:
    return Chart(
        "learning_curves",
        "Learning curves",
        "Bold: interquartile mean over seeds; band: its 95 % bootstrap interval, point by point."
        + (_crowd(comparison) or " Thin: single seeds, dotted if unfinished or failed."),
        _by_environment(comparison, "mean return over environment steps.", drawing.draw_curves),
        _size(len(comparison.env_ids)),
        key=_KEY_OF_MANY if drawing.crowded(comparison) else _KEY,
    )


def _crowd(comparison: Comparison) -> str:
    """What is added to the caption of lines that are too many to be told apart."""
    if not drawing.crowded(comparison):
        return ""
    return f" The {drawing.OUTSTANDING} best of each picture have colours, the others are grey."


def _without(comparison: Comparison, shown: Container[str]) -> str:
    """What is added to the caption of a figure that does not show all algorithms."""
    return f" {sentence}" if (sentence := left_out(comparison, shown)) else ""


def _clock(comparison: Comparison) -> Chart:
    return Chart(
        "wall_clock",
        "Return over time",
        "The learning curves once more over time, learning included, evaluations not; a run that has ended stays where "
        "it was. Runs shared the machine with others, so that ratios say more than seconds; where they are large the "
        "axis is logarithmic." + _crowd(comparison),
        _by_environment(comparison, "return over seconds of training.", drawing.draw_clock),
        _size(len(comparison.env_ids)),
        key="bold: interquartile mean over seeds · band: its 95 % bootstrap interval",
    )


def _finals(comparison: Comparison) -> Chart:
    return Chart(
        "final_returns",
        "Every run",
        "Dots: the final return of each run; line: interquartile mean; bar: its 95 % bootstrap interval. What is to be "
        "expected of the next run is the spread of the dots; the bar says how well the middle is known.",
        _by_environment(comparison, "final returns of all runs.", drawing.draw_finals),
        size=(_size(len(comparison.env_ids))[0], 1.15 + 0.36 * len(comparison.labels)),
    )


def _aggregates(comparison: Comparison) -> Chart:
    def panel(name: str) -> Panel:
        values = ", ".join(f"{label} {number(row[name].point)}" for label, row in comparison.aggregates.items())
        return Panel(name, f"{name}: {values}.", partial(drawing.draw_aggregate, comparison=comparison, name=name))

    return Chart(
        "aggregates",
        "Aggregates with their intervals",
        "Of normalised final returns over all environments; bar: 95 % stratified bootstrap interval. The smaller the "
        "optimality gap, the better." + _without(comparison, comparison.aggregates),
        [panel(name) for name in AGGREGATES],
        size=(2.65, 1.0 + 0.36 * len(comparison.aggregates)),
    )


def _efficiency(comparison: Comparison) -> Chart:
    ends = ", ".join(f"{label} {number(float(band.middle[-1]))}" for label, band in comparison.efficiency.items())
    return Chart(
        "sample_efficiency",
        "Sample efficiency over all environments",
        "Interquartile mean of the normalised return of all runs in all environments after a share of the budget; "
        "band: 95 % stratified bootstrap interval, point by point."
        + _without(comparison, comparison.efficiency)
        + _crowd(comparison),
        [Panel("All environments", f"Normalised return over training. At the end: {ends}.",
               partial(drawing.draw_efficiency, comparison=comparison))],
        size=_size(1),
        key="band: 95 % stratified bootstrap interval",
    )  # fmt: skip


def _profiles(comparison: Comparison) -> Chart:
    def panel(title: str, found: Any, unit: str) -> Panel:
        alt = f"{title}: share of runs above each {unit}, of {', '.join(found)}."
        return Panel(title, alt, partial(drawing.draw_profiles, comparison=comparison, profiles=found, unit=unit))

    overall = [panel("All environments", comparison.profile, "normalised final return")] if comparison.several else []
    known = {env_id: found for env_id, found in comparison.profiles.items() if found}
    panels = [
        *(overall if comparison.profile else []),
        *(panel(env_id, found, "final return per episode") for env_id, found in known.items()),
    ]
    return Chart(
        "performance_profiles",
        "Performance profiles",
        "Share of runs whose final return lies above the value on the axis; band: 95 % bootstrap interval, point by "
        "point. A line above another everywhere is that of the better algorithm; where it drops early, seeds fail."
        + _crowd(comparison),
        panels,
        _size(len(panels)),
        key="band: 95 % bootstrap interval",
    )


def _improvement(comparison: Comparison) -> Chart:
    n = len(comparison.complete)
    best = max(comparison.improvement.items(), key=lambda item: item[1].point)
    where = f"the mean of {len(comparison.env_ids)} environments" if comparison.several else comparison.env_ids[0]
    alt = (
        f"{n} by {n} probabilities; the largest is {best[1].point:.2f}, that {best[0][0]} is better than {best[0][1]}."
    )
    return Chart(
        "probability_of_improvement",
        "Probability of improvement",
        f"How probably a run of the row is better than one of the column, in {where}, with its 95 % stratified "
        "bootstrap interval. One half: no difference; blue: the row is better; red: the column."
        + _without(comparison, comparison.complete),
        [Panel("P(row > column)", alt, partial(drawing.draw_improvement, comparison=comparison))],
        size=(1.9 + 0.85 * min(n, 9), 1.2 + 0.55 * n),
    )


# --- files


def write(chart: Chart, comparison: Comparison, *paths: Path) -> None:
    """All panels of ``chart``, drawn once, in each of the files.

    :raises ModuleNotFoundError: matplotlib is not installed
    """
    columns = min(len(chart.panels), max(int(_WIDTH // chart.size[0]), 1))
    rows = math.ceil(len(chart.panels) / columns)
    legend = 0.0 if chart.key is None else 0.28 * math.ceil(len(comparison.labels) / 2) + 0.3
    width, height = (_FILE_SCALE * side for side in chart.size)
    whole = new_figure((max(width * columns, 7.4) if chart.key else width * columns, (height + 0.35) * rows + legend))
    panels = whole.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(panels, chart.panels, strict=False):
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", color=INK, fontweight="bold", fontsize=10)
    for axes in panels[len(chart.panels) :]:
        axes.set_visible(False)
    if chart.key is not None:
        _draw_legend(whole, panels, comparison.labels, chart.key)
    save(whole, *paths)


def _draw_legend(whole: Any, panels: Any, labels: Sequence[str], key: str) -> None:
    drawn = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    known = [label for label in labels if label in drawn]
    longest = max(map(len, known), default=0)
    whole.legend(
        [drawn[label] for label in known],
        known,
        loc="outside lower left",
        ncols=min(1 if longest > 44 else 2 if longest > 16 else 4, max(len(known), 1)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=3,
        title=key,
        title_fontsize=8,
        alignment="left",
    )


def pictures(chart: Chart) -> dict[str, Any]:
    """The chart as the page wants it.

    :raises ModuleNotFoundError: matplotlib is not installed
    """
    panels = [
        {"title": panel.title, "alt": panel.alt, "svg": figure.svg(panel, chart.size, f"{chart.name}{index}")}
        for index, panel in enumerate(chart.panels)
    ]
    width = round(chart.size[0] * _REM_PER_INCH, 1)
    return {"title": chart.title, "caption": chart.caption, "single": chart.single, "panels": panels, "width": width}
