"""What the figures of a tuning show, each panel by itself. Matplotlib's axes are called panels here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from sb3_pg_ext.experiments.figure import COLOURS, FAINT, INK, short_number, tidy
from sb3_pg_ext.experiments.tuning.axes import Axis, compact
from sb3_pg_ext.experiments.tuning.fate import Fate, fate_of
from sb3_pg_ext.experiments.tuning.overview import Overview, value_of
from sb3_pg_ext.experiments.tuning.sensitivity import Sensitivity
from sb3_pg_ext.spec import Int, OneMinus

BLUE, RED, GREEN = COLOURS[:3]
# Told apart by shape and filling as well as by colour.
_MARKS: dict[Fate, dict[str, Any]] = {
    "completed": {"marker": "o", "s": 22, "color": BLUE, "linewidths": 0, "alpha": 0.85, "label": "completed"},
    "cut": {"marker": "o", "s": 22, "facecolors": "none", "edgecolors": BLUE, "label": "cut"},
    "pruned": {"marker": "v", "s": 22, "facecolors": "none", "edgecolors": RED, "label": "pruned"},
    "failed": {"marker": "x", "s": 26, "color": INK, "linewidths": 1.3, "label": "failed"},
    "running": {"marker": "s", "s": 20, "facecolors": "none", "edgecolors": FAINT, "label": "running"},
}
_BEST = {"marker": "*", "s": 130, "color": GREEN, "linewidths": 0, "zorder": 4}
_FIRST = {"marker": "D", "s": 62, "facecolors": "none", "edgecolors": INK, "linewidths": 1.3, "zorder": 4}
_FLOOR = 0.025  # where trials without a value stand, as a share of the panel's height
_MAX_TICKS = 7
_LONGEST = 24  # characters of an option that are shown
_ROOM_FOR_OPTIONS = 42  # characters that fit under a small panel


def draw_history(panel: Any, overview: Overview) -> None:
    """Every trial's value by its number, and the best so far."""
    _scatter(panel, overview.shown, {trial.number: float(trial.number) for trial in overview.shown})
    steps = _best_so_far(overview)
    if steps:
        panel.step(*zip(*steps, strict=True), where="post", color=GREEN, linewidth=1.8, label="best so far", zorder=2)
    _mark(panel, overview, {trial.number: float(trial.number) for trial in overview.shown})
    panel.set_xlabel("trial")
    panel.set_ylabel("value")
    panel.xaxis.get_major_locator().set_params(integer=True)
    _legend(panel)
    tidy(panel)


def _best_so_far(overview: Overview) -> list[tuple[int, float]]:
    steps: list[tuple[int, float]] = []
    for trial in overview.completed:
        steps.append((trial.number, max(value_of(trial) or 0.0, steps[-1][1]) if steps else value_of(trial) or 0.0))
    return [*steps, (overview.shown[-1].number, steps[-1][1])] if steps else []


def _scatter(panel: Any, trials: Sequence[FrozenTrial], places: Mapping[int, float]) -> None:
    """Trials at (place, value), those without a value on the floor; what became of them told apart."""
    for fate, look in _MARKS.items():
        here = [trial for trial in trials if fate_of(trial) == fate and trial.number in places]
        high = [(places[t.number], value) for t in here if fate != "failed" and (value := value_of(t)) is not None]
        flat = [places[t.number] for t in here if fate == "failed" or value_of(t) is None]
        if high:
            panel.scatter(*zip(*high, strict=True), zorder=3, **look)
        if flat:
            style = {**look, "label": "" if high else look["label"]}
            floor = [_FLOOR] * len(flat)
            panel.scatter(flat, floor, transform=panel.get_xaxis_transform(), clip_on=False, zorder=3, **style)


def _mark(panel: Any, overview: Overview, places: Mapping[int, float]) -> None:
    """The best trial, and the first."""
    for trial, look, label in ((overview.best, _BEST, "best"), (overview.first, _FIRST, overview.name_of_first)):
        value = None if trial is None else value_of(trial)
        if trial is not None and value is not None and trial.number in places:
            panel.scatter([places[trial.number]], [value], label=label, **look)


def draw_importance(panel: Any, importances: Mapping[str, float]) -> None:
    """A bar for each setting, with its number."""
    names = sorted(importances, key=lambda name: importances[name])
    shares = [importances[name] for name in names]
    panel.barh(names, shares, color=BLUE, height=0.62)
    for row, share in enumerate(shares):
        panel.text(share, row, f" {share:.0%}", va="center", ha="left", color=INK, fontsize=8)
    panel.set_xlim(0, max(shares) * 1.13)
    panel.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panel.set_xlabel("share of the importance of all settings")
    tidy(panel)
    panel.grid(axis="y", visible=False)


def draw_slice(panel: Any, overview: Overview, axis: Axis, limits: tuple[float, float]) -> None:
    """Value against one setting.

    :param limits: of the values of all trials, so that the pictures of all settings compare
    """
    jitter = np.random.default_rng(0)
    places = {
        trial.number: place + (jitter.uniform(-0.22, 0.22) if axis.options else 0.0)
        for trial in overview.shown
        if (place := axis.place(trial)) is not None
    }
    _scatter(panel, overview.shown, places)
    _mark(panel, overview, places)
    set_axis(panel, axis)
    _set_values(panel, limits)
    tidy(panel)


def draw_intermediate(panel: Any, overview: Overview) -> None:
    """What trials came to while they ran, over the environment steps of all their runs."""
    total, every = overview.plan.total_steps, overview.plan.every
    best = overview.best
    for trial in sorted(overview.shown, key=lambda trial: trial is best):
        curve = _curve(trial, total)
        if curve:
            # A point alone has no line; a mark shows that it is there.
            panel.plot(*zip(*curve, strict=True), marker="." if len(curve) == 1 else None, **_line(trial, best))
    n_runs = overview.plan.seeds_per_trial
    for boundary in range(1, n_runs):
        panel.axvline(boundary * total, color=FAINT, linewidth=0.8)
    for run in range(n_runs if n_runs <= 10 else 0):
        where = panel.get_xaxis_transform()
        panel.text((run + 0.5) * total, 1.01, f"seed {run}", transform=where, ha="center", color=FAINT, fontsize=8)
    panel.set_xlim(min(every, total) * 0.5, n_runs * total * 1.005)
    panel.set_xlabel("environment steps of all runs of the trial")
    panel.set_ylabel("value so far")
    panel.xaxis.set_major_formatter(lambda step, _: short_number(step))
    _legend(panel)
    tidy(panel)


def _curve(trial: FrozenTrial, total: int) -> list[tuple[int, float]]:
    """(environment steps, value). Where trials are compared run by run, the steps in the trial are numbers of runs."""
    by_run = 0 in trial.intermediate_values
    points = sorted(trial.intermediate_values.items())
    return [((step + 1) * total if by_run else step, value) for step, value in points if np.isfinite(value)]


def _line(trial: FrozenTrial, best: FrozenTrial | None) -> dict[str, Any]:
    if trial is best:
        return {"color": GREEN, "linewidth": 2.4, "zorder": 4, "label": f"best (trial {trial.number})"}
    fate = fate_of(trial)
    dashes: dict[Fate, Any] = {"completed": "-", "cut": (0, (8, 2)), "pruned": (0, (4, 2))}
    colours: dict[Fate, str] = {"completed": BLUE, "cut": BLUE, "pruned": RED}
    line, colour = dashes.get(fate, (0, (1, 1.2))), colours.get(fate, FAINT)
    return {"color": colour, "linestyle": line, "linewidth": 0.9, "alpha": 0.55, "label": _MARKS[fate]["label"]}


def draw_sensitivity(panel: Any, found: Sensitivity, limits: tuple[float, float]) -> None:
    """Median and middle half of the values in every bin.

    :param limits: of the values of all settings, so that their pictures compare
    """
    low, middle, high = np.array([each.quartiles for each in found.bins]).T
    places = [each.place for each in found.bins]
    spread = np.stack([middle - low, high - middle])
    if found.axis.options:
        panel.errorbar(places, middle, yerr=spread, fmt="o", color=BLUE, markersize=5, linewidth=4, alpha=0.35)
        panel.scatter(places, middle, color=BLUE, s=26, zorder=3)
    else:
        panel.fill_between(places, low, high, color=BLUE, alpha=0.2, linewidth=0)
        panel.plot(places, middle, color=BLUE, marker="o", markersize=4, linewidth=1.8)
    set_axis(panel, found.axis)
    _set_values(panel, limits)
    tidy(panel)


def _set_values(panel: Any, limits: tuple[float, float]) -> None:
    room = 0.07 * (limits[1] - limits[0]) or 1.0
    panel.set_ylim(limits[0] - room, limits[1] + room)
    panel.set_ylabel("value")


def set_axis(panel: Any, axis: Axis) -> None:
    """Scale, limits and ticks of a setting."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    low, high = _limits(axis)
    if axis.log:
        panel.set_xscale("log")
        decades = np.log10(high / low)
        panel.xaxis.set_major_locator(LogLocator(numticks=_MAX_TICKS, subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        panel.xaxis.set_minor_locator(NullLocator())
    elif axis.options:
        panel.xaxis.set_major_locator(FixedLocator(range(len(axis.options))))
    else:
        whole = isinstance(axis.dimension, Int)
        panel.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS - 1, steps=[1, 2, 5, 10], integer=whole))
    panel.xaxis.set_major_formatter(lambda place, _: _tick(axis, place))
    panel.set_xlim(low, high)
    panel.set_xlabel(f"if {axis.condition}" if axis.condition else "")
    if isinstance(axis.dimension, OneMinus):
        panel.invert_xaxis()  # so that the setting itself grows to the right
    if sum(min(len(option), _LONGEST) + 3 for option in axis.options) > _ROOM_FOR_OPTIONS:
        panel.tick_params(axis="x", rotation=30)
        for label in panel.get_xticklabels():
            label.set_horizontalalignment("right")


def _limits(axis: Axis) -> tuple[float, float]:
    """The searched range with a margin."""
    low, high = axis.ends
    if axis.options:
        return low - 0.5, high + 0.5
    if axis.log:
        room = (high / low) ** 0.04 if high > low else 2.0
        return low / room, high * room
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _tick(axis: Axis, place: float) -> str:
    if axis.options and round(place) in range(len(axis.options)):
        text = axis.options[round(place)]
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return "" if axis.options else axis.text(place) if axis.parameter != axis.name else compact(place)


def _legend(panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    known = dict(zip(reversed(labels), reversed(handles), strict=True))
    if known:
        panel.figure.legend(
            [known[label] for label in dict.fromkeys(labels)],
            list(dict.fromkeys(labels)),
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
        )
