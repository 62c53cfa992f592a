"""What a study shows in the terminal while it is under way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sb3_pg_ext.experiments.run_spec import RunSpec

_DONE = ("finished", "failed")
_SECONDS_BETWEEN_LINES = 30.0


class _Announcer:
    """Tells of every run that ends, once, and adds up how far all are."""

    def __init__(self, runs: Sequence[RunSpec], console: Console):
        self.runs = {run.key: run for run in runs}
        self.console = console
        self._width = max((len(run.name) for run in runs), default=0)
        self._told: set[str] | None = None
        self._began = time.monotonic()
        self._steps_before = 0

    def tell(self, rows: Mapping[str, Any]) -> None:
        done = {key for key, row in rows.items() if row["status"] in _DONE}
        if self._told is None:
            self._first(done, rows)
        for key in done - (self._told or set()):
            self.console.print(self._line(self.runs[key], rows[key]), highlight=False)
        self._told = done

    def _first(self, done: set[str], rows: Mapping[str, Any]) -> None:
        self._told = done
        self._steps_before = self._steps(rows)
        if done:
            failed = sum(rows[key]["status"] == "failed" for key in done)
            known = f"{len(done)} of {len(rows)} runs are in the store already"
            self.console.print(f"{known}: {len(done) - failed} finished, {failed} failed.", highlight=False)

    def _line(self, run: RunSpec, row: Any) -> str:
        name = escape(run.name.ljust(self._width))
        if row["status"] == "failed":
            reason = (row["error"] or "").strip().splitlines() or [""]
            return f"[red]✗[/] {name}  [red]failed:[/] {escape(reason[-1])}"
        return f"[green]✓[/] {name}  return {row['latest']:10.2f}"

    def _steps(self, rows: Mapping[str, Any]) -> int:
        """Environment steps done; a run that has ended counts in full."""
        totals = ((self.runs[key].total_steps, row) for key, row in rows.items())
        return sum(total if row["status"] in _DONE else min(row["step"], total) for total, row in totals)

    def share(self, rows: Mapping[str, Any]) -> float:
        return self._steps(rows) / max(sum(run.total_steps for run in self.runs.values()), 1)

    def summary(self, rows: Mapping[str, Any]) -> str:
        ended = sum(row["status"] in _DONE for row in rows.values())
        failed = sum(row["status"] == "failed" for row in rows.values())
        elapsed = time.monotonic() - self._began
        steps = self._steps(rows)
        left = sum(run.total_steps for run in self.runs.values()) - steps
        rate = (steps - self._steps_before) / max(elapsed, 1e-9)
        eta = f"about {duration(left / rate)} left" if rate > 0 and elapsed > 3 and left else ""
        parts = (
            f"{ended} of {len(rows)} runs",
            f"{failed} failed" if failed else "",
            f"{duration(elapsed)} elapsed",
            eta,
        )
        return " · ".join(part for part in parts if part)


class LiveProgress:
    """Bars for the runs under way and for the whole study, redrawn in place.

    :param runs: of the study
    :param console: a terminal
    """

    def __init__(self, runs: Sequence[RunSpec], console: Console):
        self._announcer = _Announcer(runs, console)
        name, bar = TextColumn("  {task.description}", markup=False), BarColumn(bar_width=24)
        self._runs = Progress(name, bar, TextColumn("{task.fields[detail]}", markup=False), console=console)
        self._total = Progress(
            TextColumn("  [bold]All runs[/]"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}")
        )
        self._whole = self._total.add_task("", total=1.0, detail="starting …")
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(Group(self._runs, self._total), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def look(self, rows: Mapping[str, Any]) -> None:
        for key, row in rows.items():
            self._show(self._announcer.runs[key], row)
        self._announcer.tell(rows)
        self._total.update(self._whole, completed=self._announcer.share(rows), detail=self._announcer.summary(rows))

    def _show(self, run: RunSpec, row: Any) -> None:
        running = row["status"] == "running"
        if not running and run.key in self._tasks:
            self._runs.remove_task(self._tasks.pop(run.key))
        if running and run.key not in self._tasks:
            self._tasks[run.key] = self._runs.add_task(run.name, total=run.total_steps, detail="")
        if running:
            self._runs.update(self._tasks[run.key], completed=row["step"], detail=self._detail(run, row))

    def _detail(self, run: RunSpec, row: Any) -> str:
        latest = "" if row["latest"] is None else f"return {row['latest']:9.2f}"
        speed = f"{row['step'] / row['seconds']:7,.0f} steps/s" if row["seconds"] > 0 else ""
        return f"{row['step']:>9,} / {run.total_steps:,}  {latest:16}  {speed}"


class PlainProgress:
    """One line per run that ends, and one on the whole now and then: for pipes, log files and CI.

    :param runs: of the study
    :param console: where to print
    """

    def __init__(self, runs: Sequence[RunSpec], console: Console):
        self._announcer = _Announcer(runs, console)
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def look(self, rows: Mapping[str, Any]) -> None:
        self._announcer.tell(rows)
        if time.monotonic() >= self._next_line:
            self._announcer.console.print(self._announcer.summary(rows), highlight=False)
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES


def progress_of(runs: Sequence[RunSpec], console: Console) -> LiveProgress | PlainProgress:
    """The display that fits where the output goes."""
    return LiveProgress(runs, console) if console.is_terminal else PlainProgress(runs, console)


def duration(seconds: float) -> str:
    """``75`` as ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
