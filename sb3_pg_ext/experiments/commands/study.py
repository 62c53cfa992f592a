"""Look at a comparison, take its numbers elsewhere, and take in runs that were made elsewhere.

status says how far it is, also while it runs. advise says which pairs of algorithms are different beyond chance, and
which need more seeds. export writes a table of runs and one of evaluations, as CSV and Parquet.
import reads log folders of rl_zoo3 and of sb3-pg train, and files of Stable-Baselines3's Monitor: they become finished
runs, marked as imported, which reports show beside the study's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import whole

EXAMPLES = """\
examples:
  sb3-pg study status results/demo
  sb3-pg study status results/demo --watch 5
  sb3-pg study advise results/demo --groups 4 --group-size 5          at 5, 10, 15 and 20 seeds, as was planned
  sb3-pg study export results/demo -o tables --format parquet
  sb3-pg study import results/demo logs                               all runs below logs/<algo>/<env>_<n>
  sb3-pg study import results/demo monitors/run1 --algo my_ppo --env CartPole-v1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="status|advise|export|import")
    status = actions.add_parser("status", help="how far it is, which runs are under way, and what has failed")
    _add_folder(status)
    status.add_argument("--watch", type=whole, metavar="S", help="again every S seconds until Ctrl-C")
    status.set_defaults(act=_status)
    _add_advise(actions.add_parser("advise", help="which pairs are settled, and how many seeds the others need"))
    export = actions.add_parser("export", help="write runs.csv, evaluations.csv, and the same as Parquet")
    _add_folder(export)
    export.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the tables go (<folder>/tables)")
    formats = ("csv", "parquet")
    export.add_argument("--format", nargs="+", choices=formats, default=list(formats), help="which (both)")
    export.set_defaults(act=_export)
    imports = actions.add_parser("import", help="take in runs from log folders and files of Monitor")
    _add_folder(imports)
    imports.add_argument("logs", nargs="+", type=Path, metavar="LOGS", help="a folder with runs in it or below; a file")
    imports.add_argument("--algo", help="algorithm, where the files do not say it")
    imports.add_argument("--env", help="environment id, where the files do not say it")
    imports.add_argument("--name", metavar="LABEL", help="how the runs are named in tables (<algo> (imported))")
    imports.set_defaults(act=_import)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where study.sqlite is")


def _add_advise(advise: argparse.ArgumentParser) -> None:
    _add_folder(advise)
    advise.add_argument("--alpha", type=float, default=0.05, help="error over all pairs of an environment (0.05)")
    advise.add_argument("--groups", type=whole, default=5, metavar="K", help="the most looks that were planned (5)")
    advise.add_argument("--group-size", type=whole, default=5, metavar="N", help="seeds added before each look (5)")
    advise.add_argument(
        "--algo", nargs="+", metavar="LABEL", help="the algorithms that were to be compared (all but imported)"
    )
    advise.set_defaults(act=_advise)


def run(args: argparse.Namespace) -> int:
    return args.act(args)


def _status(args: argparse.Namespace) -> int:
    import time

    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.study_status import Status

    terminal = console()
    while True:
        with Store(args.folder / FILE_NAME, read_only=True) as store:
            _show(Status.of(store), args.folder, terminal)
        if args.watch is None:
            return 0
        time.sleep(args.watch)


def _show(status: Any, folder: Path, terminal: Any) -> None:
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.study_status import RUNNING, SETTINGS

    rows = [tuple(map(escape, row)) for row in status.settings()]
    terminal.print(table(escape(str(folder)), SETTINGS, rows, right_from=2))
    running = [tuple(map(escape, row)) for row in status.running()]
    if running:
        terminal.print(table("", RUNNING, running, right_from=1))
    for line in status.failures():
        terminal.print(f"[red]✗[/] {escape(line)}", soft_wrap=True)
    terminal.print(status.line(), markup=False)


def _advise(args: argparse.Namespace) -> int:
    from rich.markup import escape

    from sb3_pg_ext.experiments.comparison.advice import HEADER, POWER, advise, explanation
    from sb3_pg_ext.experiments.comparison.analysis import Comparison
    from sb3_pg_ext.experiments.console import console, table
    from sb3_pg_ext.experiments.statistics import Design
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.summary import summarise

    design = Design(args.groups, args.group_size, args.alpha)
    with Store(args.folder / FILE_NAME, read_only=True) as store:
        comparison = Comparison(_named(summarise(store.records()), args.algo))
    terminal = console()
    for env_id in comparison.env_ids:
        advice = advise(comparison, env_id, design, imported=args.algo is not None)
        if rows := [tuple(map(escape, row)) for row in advice.rows()]:
            terminal.print(table(escape(env_id), HEADER, rows, right_from=3))
        terminal.print(f"{env_id}: {advice.sentence()}", markup=False)
        terminal.print()
    terminal.print(f"{explanation(design)} {POWER}", markup=False, style="dim")
    return 0


def _named(summaries: Sequence[Any], labels: Sequence[str] | None) -> list[Any]:
    known = list(dict.fromkeys(summary.label for summary in summaries))
    if not known:
        raise ValueError("the study has no runs yet")
    unknown = [label for label in labels or () if label not in known]
    if unknown:
        raise ValueError(f"--algo {' '.join(unknown)}: the study has {', '.join(known)}")
    return [summary for summary in summaries if summary.label in (labels or known)]


def _export(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.tidy_tables import export

    with Store(args.folder / FILE_NAME, read_only=True) as store:
        records = store.records()
    for file in export(records, args.output or args.folder / "tables", dict.fromkeys(args.format)):
        print(file)
    return 0


def _import(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.log_import import read_runs
    from sb3_pg_ext.experiments.store import FILE_NAME, Store

    found, troubles = read_runs(args.logs, args.algo, args.env, args.name)
    if found:
        new = not (args.folder / FILE_NAME).exists()
        with Store(args.folder / FILE_NAME, create=True) as store:
            kept = [_keep(path, imported, store) for path, imported in found]
        if new:
            print(f"There was no study in {args.folder}: a new one has been made.")
        print(f"{sum(kept)} runs imported, {len(kept) - sum(kept)} were there already.")
    _complain(troubles)
    return 1 if troubles else 0


def _keep(path: Path, imported: Any, store: Any) -> bool:
    spec = store.add_imported(imported.spec, imported.evaluations, imported.provenance)
    print(f"{path}: {'there already' if spec is None else spec.name}")
    return spec is not None


def _complain(troubles: Sequence[str]) -> None:
    import sys

    for trouble in troubles:
        print(f"not imported: {trouble}", file=sys.stderr)
