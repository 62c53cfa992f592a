"""The terminal that commands print to."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH_OF_FILES = 150  # of lines that do not go to a terminal


def console() -> Console:
    """Standard output, with room for tables where it is a file or a pipe."""
    terminal = Console(highlight=False)
    return terminal if sys.stdout.isatty() else Console(highlight=False, width=_WIDTH_OF_FILES, force_terminal=False)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right_from: int = 10**9) -> Table:
    """A table whose columns from number ``right_from`` on are set to the right."""
    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if any(header) else None,
        show_header=any(header),
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column, name in enumerate(header):
        made.add_column(name, justify="right" if column >= right_from else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
