"""The figures of a comparison: which there are, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Any

from sb3_pg_ext.experiments.chart import ALONE, AMONG_OTHERS, Chart
from sb3_pg_ext.experiments.comparison import drawing
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import failures, left_out
from sb3_pg_ext.experiments.comparison.looks import OUTSTANDING, crowded
from sb3_pg_ext.experiments.figure import Panel
from sb3_pg_ext.experiments.statistics import AGGREGATES
from sb3_pg_ext.experiments.summary import number

_KEY_OF_MANY = "bold: interquartile mean over seeds · band: 95 % bootstrap interval"
_KEY = "bold: interquartile mean over seeds · band: 95 % bootstrap interval · thin: single seeds (dotted: unfinished)"


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
    return ALONE if n_panels == 1 else AMONG_OTHERS


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
        + (_crowd(comparison) or " Thin: single seeds, dotted if unfinished or failed.")
        + _failures(comparison),
        _by_environment(comparison, "mean return over environment steps.", drawing.draw_curves),
        _size(len(comparison.env_ids)),
        key=_KEY_OF_MANY if crowded(comparison) else _KEY,
    )


def _crowd(comparison: Comparison) -> str:
    """What is added to the caption of lines that are too many to be told apart."""
    if not crowded(comparison):
        return ""
    return f" The {OUTSTANDING} best of each picture have colours, by their places there; the others are grey."


def _failures(comparison: Comparison) -> str:
    """What is added to the caption of a figure in which some runs are not, because they failed."""
    return f" {sentence}" if (sentence := failures(comparison)) else ""


def _without(comparison: Comparison, shown: Container[str]) -> str:
    """What is added to the caption of a figure that does not show all algorithms."""
    return f" {sentence}" if (sentence := left_out(comparison, shown)) else ""


def _clock(comparison: Comparison) -> Chart:
    return Chart(
        "wall_clock",
        "Return over time",
        "The learning curves once more over time, learning included, evaluations not; a run that has ended stays where "
        "it was. Runs shared the machine with others, so that ratios say more than seconds; where they are large the "
        "axis is logarithmic." + _crowd(comparison) + _failures(comparison),
        _by_environment(comparison, "return over seconds of training.", drawing.draw_clock),
        _size(len(comparison.env_ids)),
        key="bold: interquartile mean over seeds · band: its 95 % bootstrap interval",
    )


def _finals(comparison: Comparison) -> Chart:
    return Chart(
        "final_returns",
        "Every run",
        "Dots: the final return of each run; line: interquartile mean; bar: its 95 % bootstrap interval. What is to be "
        "expected of the next run is the spread of the dots; the bar says how well the middle is known."
        + _crowd(comparison)
        + _failures(comparison),
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
        "optimality gap, the better."
        + _without(comparison, comparison.aggregates)
        + _crowd(comparison)
        + _failures(comparison),
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
        + _crowd(comparison)
        + _failures(comparison),
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
        "point. A line above another everywhere is that of the better algorithm; where it drops early, seeds do badly."
        + _crowd(comparison)
        + _failures(comparison),
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
    interval = ", with its 95 % stratified bootstrap interval" if n <= drawing.FEW else ""
    return Chart(
        "probability_of_improvement",
        "Probability of improvement",
        f"How probably a run of the row is better than one of the column, in {where}{interval}. One half: no "
        "difference; blue: the row is better; red: the column."
        + _without(comparison, comparison.complete)
        + _failures(comparison),
        [Panel("P(row > column)", alt, partial(drawing.draw_improvement, comparison=comparison))],
        size=(1.9 + 0.85 * min(n, 9), 1.2 + 0.55 * n),
    )
