"""Write the report of a comparison or a tuning from what is in its folder, finished or half-finished.

Of a comparison: the table in the terminal, report.md, the page report.html, figures as PNG and PDF, and tables as
LaTeX. Of a tuning: report.html and its figures. Nothing is run. It may be called while the comparison or the tuning
is under way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_WIDTH_OF_NUMBERS = 100  # columns of the table besides the label
_TUNING_FILE = "tuning.json"  # that of the tuning itself is not imported for a comparison: it takes Optuna along

EXAMPLES = """\
examples:
  sb3-pg report results/demo
  sb3-pg report results/two_envs --reference scores.yml      with CartPole-v1: {low: 9.3, high: 500} and so on in it
  sb3-pg report results/tune_reinforce_CartPole-v1
  sb3-pg report results/tune_npg_Pendulum-v1 --storage postgresql://me:PASSWORD@server/tuning
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help=f"where study.sqlite is, or {_TUNING_FILE}")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="YAML with the returns that count as 0 and 1, for aggregates over environments: ENV: {low: 0, high: 1}",
    )
    parser.add_argument("--storage", metavar="URL", help="of a tuning's trials (the one it was begun with)")


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.values import SettingError

    if args.storage or (args.folder / _TUNING_FILE).is_file():
        if args.reference:
            raise SettingError(
                f"--reference {args.reference}: scores are for comparisons, and {args.folder} is a tuning"
            )
        _report_tuning(args.folder, args.storage, console())
    else:
        show(args.folder, console(), args.reference)
    return 0


def _report_tuning(folder: Path, storage: str | None, terminal: Any) -> None:
    from sb3_pg_ext.experiments.tuning.report import report_again

    for file in report_again(folder, storage, tell=lambda note: terminal.print(note, markup=False, soft_wrap=True)):
        terminal.print(f"  {file}", markup=False, soft_wrap=True)


def _broken(label: str, width: int) -> str:
    """A long label on several lines, cut where its arguments begin, so that the numbers have room."""
    room = max(width - _WIDTH_OF_NUMBERS, 16)
    return label if len(label) <= room else label.replace(":", ":\n  ", 1).replace(",", ",\n  ")


def show(folder: Path, terminal: Any, reference: Path | None = None) -> None:
    """Write the report and print its tables.

    :param reference: file of reference scores
    """
    from rich.markup import escape

    from sb3_pg_ext.experiments.comparison.facts import state_line
    from sb3_pg_ext.experiments.comparison.references import read_references
    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.report import write_report
    from sb3_pg_ext.experiments.summary import HEADER, best_first

    report = write_report(folder, None if reference is None else read_references(reference))
    for env_id in dict.fromkeys(summary.env_id for summary in report.summaries):
        here = best_first(summary for summary in report.summaries if summary.env_id == env_id)
        cells = [(_broken(label, terminal.width), *rest) for label, *rest in (summary.row() for summary in here)]
        rows = [tuple(map(escape, row)) for row in cells]
        terminal.print()
        terminal.print(table(escape(env_id), HEADER, rows, right_from=1))
    records = [record for summary in report.summaries for record in summary.records]
    terminal.print(state_line(records).strip("*"), markup=False)
    for note in report.notes:
        terminal.print(note, markup=False)
    for file in report.files:
        terminal.print(f"  {file}", markup=False, soft_wrap=True)
