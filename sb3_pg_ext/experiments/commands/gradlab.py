"""Show whether the gradients are right: what each algorithm's update is an estimate of, measured against exact answers.

On small problems whose gradients are known in closed form (a bandit, a random decision process, linear-quadratic
regulators), many independent updates of each algorithm are made and taken back. The table says how far they are from
the exact vector on average (bias), how much they scatter (variance), where they point (cosine), and what they cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole

EXAMPLES = """\
examples:
  sb3-pg gradlab                                          every estimator on every testbed
  sb3-pg gradlab --algo reinforce npg --testbed lqr       some of them
  sb3-pg gradlab --algo my_plugin --repeats 1000          a smaller standard error, to see a smaller bias

exit status: 0 none is refuted, 1 an estimator is not what it claims to be
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sb3_pg_ext.diagnostics.names import REPEATS, SAMPLES, TESTBED_NAMES

    add = parser.add_argument
    add("--algo", nargs="+", metavar="ALGO", help="algorithms (all whose SPEC makes claims)")
    add("--testbed", nargs="+", choices=TESTBED_NAMES, default=TESTBED_NAMES, help="problems (all)")
    add(
        "--samples",
        nargs="+",
        type=whole,
        default=SAMPLES,
        metavar="M",
        help=f"episodes of an estimate, two sizes at least ({' '.join(map(str, SAMPLES))})",
    )
    add("--repeats", type=whole, default=REPEATS, metavar="K", help=f"estimates of each size ({REPEATS})")
    add("--seed", type=count, default=0, metavar="S", help="of everything that is drawn at random (0)")
    add("-f", "--folder", type=Path, default=Path("results/gradlab"), metavar="DIR", help="results (results/gradlab)")
    add("-P", "-j", "--jobs", type=whole, metavar="JOBS", help="processes (one per core); no effect on the results")


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.executor import usable_cores, warm_up

    n_processes = args.jobs or usable_cores()
    if n_processes > 1:
        warm_up()  # the workers' imports go on while this process does its own

    from sb3_pg_ext.diagnostics.laboratory import jobs
    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.gradient_report import write
    from sb3_pg_ext.experiments.provenance import command

    todo = jobs(_specs(args.algo), args.testbed, args.samples, args.repeats, args.seed)
    terminal = console()
    found = _measured(todo, n_processes, terminal)
    files, notes = write(found, args.folder, command())
    _show(found, terminal)
    for note in notes:
        terminal.print(note, markup=False)
    for file in files:
        terminal.print(f"  {file}", markup=False, soft_wrap=True)
    return 1 if any(one.refuted for one in found) else 0


def _specs(keys: Sequence[str] | None) -> dict[str, Any]:
    """SPECs with claims.

    :raises ValueError: an algorithm that was asked for makes none
    """
    from sb3_pg_ext import registry

    if keys is None:
        return {key: spec for key, spec in registry.available().items() if spec.claims}
    specs = {key: registry.get(key) for key in dict.fromkeys(keys)}
    silent = [key for key, spec in specs.items() if not spec.claims]
    if silent:
        raise ValueError(f"the SPEC of {', '.join(silent)} makes no claims about its gradient: see docs/gradients.md")
    return specs


def _measured(todo: Sequence[Any], n_processes: int, terminal: Any) -> list[Any]:
    """All measurements, in the order of ``todo``, with a bar while they are made."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=terminal, transient=True) as progress:
        bar, found = progress.add_task("measuring", total=len(todo)), []
        for job, one in zip(todo, _results(todo, n_processes), strict=True):
            found.append(one)
            progress.update(bar, advance=1, description=f"{job.testbed}: {job.algorithm}".ljust(24))
            if one.refuted:
                terminal.print(f"{one.testbed}: {one.algorithm}, {one.claim.name}: {one.verdict}", markup=False)
    return found


def _results(todo: Sequence[Any], n_processes: int) -> Iterator[Any]:
    from concurrent.futures import ProcessPoolExecutor

    from sb3_pg_ext.experiments.executor import context

    if n_processes == 1:
        yield from _here(todo)
        return
    with ProcessPoolExecutor(n_processes, mp_context=context(), initializer=_one_thread) as pool:
        try:
            for future in [pool.submit(job) for job in todo]:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _here(todo: Sequence[Any]) -> Iterator[Any]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: small networks are slower with more
    try:
        for job in todo:
            yield job()
    finally:
        torch.set_num_threads(before)


def _one_thread() -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    torch.set_num_threads(1)


def _show(found: Sequence[Any], terminal: Any) -> None:
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.gradient_report import HEADER, conclusion, row, testbeds_of, title

    for bed in testbeds_of(found):
        rows = [_coloured([escape(cell) for cell in row(one)], one) for one in found if one.testbed == bed]
        terminal.print()
        terminal.print(table(title(found, bed), HEADER, rows, right_from=3))
    terminal.print(conclusion(found), markup=False)


def _coloured(cells: list[str], one: Any) -> list[str]:
    colour = "green" if one.agrees else "bold red" if one.refuted else "yellow"
    return [*cells[:-1], f"[{colour}]{cells[-1]}[/]"]
