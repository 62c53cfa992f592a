"""Write table, figure and report.md of a comparison from what is in its folder, finished or half-finished.

Nothing is run. It may be called while the comparison is under way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_WIDTH_OF_NUMBERS = 100  # columns of the table besides the label

EXAMPLES = """\
example:
  sb3-pg report results/demo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the comparison: where study.sqlite is")


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.console import console

    show(args.folder, console())
    return 0


def _broken(label: str, width: int) -> str:
    """A long label on several lines, cut where its arguments begin, so that the numbers have room."""
    room = max(width - _WIDTH_OF_NUMBERS, 16)
    return label if len(label) <= room else label.replace(":", ":\n  ", 1).replace(",", ",\n  ")


def show(folder: Path, terminal: Any) -> None:
    """Write the report and print its tables."""
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.report import state_line, write_report
    from sb3_pg_ext.experiments.summary import HEADER, best_first

    report = write_report(folder)
    for env_id in dict.fromkeys(summary.env_id for summary in report.summaries):
        here = best_first(summary for summary in report.summaries if summary.env_id == env_id)
        rows = [(_broken(escape(label), terminal.width), *rest) for label, *rest in (summary.row() for summary in here)]
        terminal.print()
        terminal.print(table(escape(env_id), HEADER, rows, right_from=1))
    records = [record for summary in report.summaries for record in summary.records]
    terminal.print(state_line(records).strip("*"), markup=False)
    for note in report.notes:
        terminal.print(note, markup=False)
    for file in report.files:
        terminal.print(f"  {file}", markup=False, soft_wrap=True)
