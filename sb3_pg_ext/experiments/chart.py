"""A chart: pictures that belong together. Its panels stand side by side in a file; on a page they flow to its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.figure import INK, Panel, new_figure, save, svg

#: Of a panel that stands alone, and of one among others, in inches.
ALONE, AMONG_OTHERS = (5.8, 3.4), (3.6, 2.7)
_WIDTH = 11.0  # of panels side by side in a file, before they are scaled, in inches
_LEAST_WIDTH = 7.4  # of a file with a legend, in inches
_FILE_SCALE = 1.25
_ROOM_ABOVE = 15  # of the axes, for names of their parts, in points
_REM_PER_INCH = 6.0  # so that the text of a picture is nearly as large as the captions
_WIDE = 6.5  # inches, above which the text of a picture that shrinks to a phone cannot be read


@dataclass(frozen=True)
class Chart:
    """Pictures that belong together.

    :param name: of the files, without their ending
    :param title: above it
    :param caption: how it is read
    :param panels: one, or one for each environment or setting
    :param size: of a panel on the page, in inches
    :param key: beneath the legend of a file; ``None`` if there is no legend, because rows are named or each panel has
        its own
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

    @property
    def wide(self) -> bool:
        """Whether it is scrolled, rather than shrunk, where there is no room for it."""
        return self.size[0] > _WIDE


def write(chart: Chart, *paths: Path, labels: Sequence[str] = ()) -> None:
    """All panels of ``chart``, drawn once, in each of the files.

    :param labels: of the lines, in the order of the legend
    :raises ModuleNotFoundError: matplotlib is not installed
    """
    columns = min(len(chart.panels), max(int(_WIDTH // chart.size[0]), 1))
    rows = math.ceil(len(chart.panels) / columns)
    legend = 0.0 if chart.key is None else 0.28 * math.ceil(len(labels) / 2) + 0.3
    width, height = (_FILE_SCALE * side for side in chart.size)
    least = 0.0 if chart.key is None else _LEAST_WIDTH
    whole = new_figure((max(width * columns, least), (height + 0.35) * rows + legend))
    panels = whole.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(panels, chart.panels, strict=False):
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", color=INK, fontweight="bold", fontsize=10, pad=_ROOM_ABOVE)
    for axes in panels[len(chart.panels) :]:
        axes.set_visible(False)
    if chart.key is not None:
        _draw_legend(whole, panels, labels, chart.key)
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
    """The chart as a page wants it.

    :raises ModuleNotFoundError: matplotlib is not installed
    """
    panels = [
        {"title": panel.title, "alt": panel.alt, "svg": svg(panel, chart.size, f"{chart.name}{index}")}
        for index, panel in enumerate(chart.panels)
    ]
    width = round(chart.size[0] * _REM_PER_INCH, 1)
    look = {"single": chart.single, "wide": chart.wide, "width": width}
    return {"title": chart.title, "caption": chart.caption, "panels": panels, **look}
