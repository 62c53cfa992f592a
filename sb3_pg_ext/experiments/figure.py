"""What all figures have in common: colours, look, and the ways in which they leave, as files and as parts of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write

# Okabe & Ito's colours, told apart with every common form of colour blindness; yellow is left out, too pale on white.
# Black is not quite black: an SVG says nothing where that is meant, and what is not said cannot be light on dark paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#010101")
#: Dashes, in widths of the line: with as many colours and one more kind of line, 28 pairs are different.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1), (6, 1.5, 1.5, 1.5))
INK, GRID, FAINT = "#333333", "#DDDDDD", "#999999"
#: The colours of a figure -> the variables of :file:`page.css` that stand for them.
VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    GRID: "--grid",
    FAINT: "--faint",
    **dict(zip(COLOURS, ("--blue", "--red", "--green", "--pink", "--orange", "--sky", "--black"), strict=True)),
}
TEXT_IS_TEXT: Any = {"text.parse_math": False, "text.usetex": False}  # a label may hold dollar signs


@dataclass(frozen=True)
class Panel:
    """One picture.

    :param title: above it
    :param alt: what it shows, for those who cannot see it
    :param draw: onto axes of matplotlib
    """

    title: str
    alt: str
    draw: Callable[[Any], None]


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure that needs no display.

    :param size: in inches
    :raises ModuleNotFoundError: matplotlib is not installed
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, *paths: Path) -> None:
    """Write ``figure`` to files whose endings say how: ``.png`` for screens, ``.pdf`` for papers."""
    import matplotlib

    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {}
        with matplotlib.rc_context({**TEXT_IS_TEXT, "pdf.fonttype": 42}), atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # the parts have found their places; to look again takes a third of the time


def svg(panel: Panel, size: tuple[float, float], identity: str) -> str:
    """``panel`` as an SVG element in the colours of the page.

    :param size: in inches, at which its text is as large as that of other figures
    :param identity: different for every picture of a page
    """
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({**TEXT_IS_TEXT, "svg.fonttype": "path", "svg.hashsalt": identity}):
        figure = new_figure(size)
        panel.draw(figure.subplots())
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(written.getvalue(), identity)


def _for_page(text: str, identity: str) -> str:
    """The element alone, without a fixed size, its names and colours made those of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{identity}-', text)
    text = re.sub(r'href="#', f'href="#{identity}-', text)
    text = text.replace("url(#", f"url(#{identity}-")
    for colour, variable in VARIABLES.items():
        text = re.sub(colour, f"var({variable})", text, flags=re.IGNORECASE)
    return text


def tidy(panel: Any, size: float = 8) -> None:
    """Grid, frame and ticks of the house.

    :param size: of the numbers on the axes, in points
    """
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.tick_params(which="both", colors=INK, labelsize=size, length=0)
    panel.xaxis.label.set(color=INK, fontsize=size + 1)
    panel.yaxis.label.set(color=INK, fontsize=size + 1)


def short_number(value: float) -> str:
    """``50000`` as ``50k``, ``2500000`` as ``2.5M``."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
