"""By what the lines of a figure are told apart: colours, dashes, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.figure import COLOURS, DASHES, FAINT

MANY = 12  # algorithms; with more, lines cannot be told apart, and only the best have a colour
OUTSTANDING = len(COLOURS)  # of many, those that have one
_LONGEST = 26  # characters of a label that are shown beside rows


@dataclass(frozen=True)
class Look:
    """Of a line.

    :param colour: one of :data:`COLOURS`, or grey
    :param dashes: in widths of the line
    :param outstanding: whether it is one of those that are looked at
    """

    colour: str
    dashes: tuple[float, ...] = ()
    outstanding: bool = True

    @property
    def style(self) -> dict[str, Any]:
        """As matplotlib wants it."""
        return {"color": self.colour, "linestyle": (0, self.dashes) if self.dashes else "-"}


def crowded(comparison: Comparison) -> bool:
    """Whether there are too many lines to be told apart."""
    return len(comparison.labels) > MANY


def looks(comparison: Comparison, best_first: Sequence[str]) -> dict[str, Look]:
    """Label -> look in one picture.

    An algorithm looks the same in all figures, unless there are too many of them: then the best of each picture have
    colours that are all different, by their places there.

    :param best_first: the labels that are in the picture
    """
    if not crowded(comparison):
        return {label: _numbered(comparison.labels.index(label)) for label in best_first}
    return {label: _numbered(n) if n < OUTSTANDING else Look(FAINT, (), False) for n, label in enumerate(best_first)}


def _numbered(number: int) -> Look:
    return Look(COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)])


def shortened(label: str) -> str:
    """``label``, not longer than there is room beside a row."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
