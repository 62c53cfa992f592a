"""Learning curves: every seed thin, the interquartile mean bold, its confidence band behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import curve_band
from sb3_pg_ext.experiments.summary import Summary, best_first

# Okabe & Ito's colours, told apart with every common form of colour blindness; yellow is left out, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
_INK, _GRID = "#333333", "#DDDDDD"
_MAX_COLUMNS = 3
_KEY = "bold: interquartile mean over seeds · band: 95 % bootstrap interval · thin: single seeds (dotted: unfinished)"


def draw_learning_curves(summaries: Sequence[Summary], path: Path) -> None:
    """Write the learning curves as a PNG, one panel per environment.

    :param summaries: all of them; colours follow their order, the legend the results
    :raises ModuleNotFoundError: matplotlib is not installed
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    env_ids = list(dict.fromkeys(summary.env_id for summary in summaries))
    labels = list(dict.fromkeys(summary.label for summary in summaries))
    columns = min(len(env_ids), _MAX_COLUMNS)
    rows = math.ceil(len(env_ids) / columns)
    size = (7.6 if columns == 1 else 4.6 * columns, 4.2 * rows + 0.28 * math.ceil(len(labels) / 2) + 0.2)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, env_id in zip(panels, env_ids, strict=False):
        here = [summary for summary in summaries if summary.env_id == env_id]
        _draw_panel(panel, env_id, here, labels)
    for panel in panels[len(env_ids) :]:
        panel.set_visible(False)
    _draw_legend(figure, panels[0], labels)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_panel(panel: Any, env_id: str, summaries: Sequence[Summary], labels: Sequence[str]) -> None:
    for summary in reversed(best_first(summaries)):  # the best is drawn last, on top
        _draw_summary(panel, summary, labels.index(summary.label))
    protocol = summaries[0].records[0].spec.protocol
    how = "deterministic" if protocol.deterministic else "stochastic"
    panel.set_title(env_id, loc="left", color=_INK, fontweight="bold", fontsize=11)
    panel.set_xlabel("training (environment steps)", color=_INK)
    panel.set_ylabel(f"return per episode\n(mean of {protocol.episodes} {how} held-out episodes)", color=_INK)
    panel.xaxis.set_major_formatter(lambda value, _: short_number(value))
    panel.grid(color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#999999")
    panel.tick_params(colors=_INK, labelsize=9)
    panel.margins(x=0.01)


def _draw_summary(panel: Any, summary: Summary, index: int) -> None:
    colour, line = COLOURS[index % len(COLOURS)], _LINES[index % len(_LINES)]
    for record in summary.records:
        if len(record.evaluations) > 1:
            whole = record.status == "finished"
            panel.plot(*_curve(record), color=colour, linewidth=0.7, alpha=0.35, linestyle="-" if whole else ":")
    finished = [_curve(record) for record in summary.finished if len(record.evaluations) > 1]
    if not finished:
        panel.plot([], [], color=colour, linestyle=line, linewidth=2.2, label=summary.label)
        return
    steps = np.unique(np.concatenate([each for each, _ in finished]))
    middle, low, high = curve_band(np.stack([np.interp(steps, *curve) for curve in finished]))
    panel.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(steps, middle, color=colour, linewidth=2.2, linestyle=line, label=summary.label)


def _curve(record: Record) -> tuple[list[int], list[float]]:
    return [e.step for e in record.evaluations], [e.mean_return for e in record.evaluations]


def _draw_legend(figure: Any, panel: Any, labels: Sequence[str]) -> None:
    drawn = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    known = [label for label in labels if label in drawn]
    columns = 1 if max(map(len, known), default=0) > 44 else 2 if max(map(len, known), default=0) > 16 else 4
    figure.legend(
        [drawn[label] for label in known],
        known,
        loc="outside lower left",
        ncols=min(columns, max(len(known), 1)),
        frameon=False,
        fontsize=9,
        handlelength=3,
        title=_KEY,
        title_fontsize=8,
        alignment="left",
    )


def short_number(value: float) -> str:
    """``50000`` as ``50k``, ``2500000`` as ``2.5M``."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
