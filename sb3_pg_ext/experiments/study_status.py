"""How far a study is, also while other processes work on it; nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.progress import duration
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.summary import number

SETTINGS = ("algorithm", "environment", "runs", "finished", "running", "to do", "failed", "steps done")
RUNNING = ("running", "steps", "done", "latest return", "steps/s", "time left", "last sign of life", "process")


@dataclass(frozen=True)
class Status:
    """The state of a study at one moment.

    :param records: of all runs that are shown
    :param rows: key of each run -> its row of the store
    :param now: Unix time
    """

    records: Sequence[Record]
    rows: Mapping[str, Any]
    now: float

    @classmethod
    def of(cls, store: Any) -> Status:
        """What is in ``store`` now."""
        records = store.records()
        rows = store.statuses([record.spec.key for record in records])
        return cls([record for record in records if record.spec.key in rows], rows, time.time())

    def _count(self, status: str) -> int:
        return sum(record.status == status for record in self.records)

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]

    def line(self) -> str:
        """The whole in one line."""
        imported = sum(record.spec.origin is not None for record in self.records)
        parts = [f"{self._count('finished')} of {len(self.records)} runs are finished"]
        parts += [f"{imported} of them imported"] if imported else []
        counts = [(self._count(status), status) for status in ("running", "pending", "failed")]
        return ", ".join([*parts, *(f"{n} {status}" for n, status in counts if n)]) + "."

    def settings(self) -> list[tuple[str, ...]]:
        """Texts for the columns of :data:`SETTINGS`, one row for each algorithm in each environment."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.spec.label, record.spec.environment.id), []).append(record)
        return [(*names, *_counts(group)) for names, group in groups.items()]

    def running(self) -> list[tuple[str, ...]]:
        """Texts for the columns of :data:`RUNNING`, one row for each run under way."""
        return [self._running(record) for record in self.records if record.status == "running"]

    def _running(self, record: Record) -> tuple[str, ...]:
        row = self.rows[record.spec.key]
        total, step, seconds = record.spec.total_steps, record.step, row["seconds"] or 0.0
        owner = Owner.parse(row["owner"]) if row["owner"] else None
        return (
            record.spec.name,
            f"{step:,} of {total:,}",
            f"{min(step / total, 1.0):.0%}",
            "–" if row["latest"] is None else number(row["latest"]),
            f"{step / seconds:,.0f}" if seconds else "–",
            duration(max(total - step, 0) * seconds / step) if step else "–",
            "–" if row["heartbeat"] is None else f"{max(self.now - row['heartbeat'], 0.0):.0f} s ago",
            "–" if owner is None else _process(owner),
        )

    def failures(self) -> list[str]:
        """A line for each failed run, with the last line of its traceback."""
        return [f"{record.spec.name}: {_last_line(record.error)}" for record in self.failed]


def _counts(records: Iterable[Record]) -> tuple[str, ...]:
    group = list(records)
    statuses = [record.status for record in group]
    done = sum(r.spec.total_steps if r.status == "finished" else min(r.step, r.spec.total_steps) for r in group)
    share = done / max(sum(record.spec.total_steps for record in group), 1)
    counted = (statuses.count(status) for status in ("finished", "running", "pending", "failed"))
    return (str(len(group)), *map(str, counted), f"{share:.0%}")


def _process(owner: Owner) -> str:
    """Its number; a dead one's run begins anew as soon as somebody goes on with the study."""
    state = {True: ", dead", False: "", None: f" on {owner.host}"}[owner.is_dead()]
    return f"{owner.pid}{state}"


def _last_line(error: str | None) -> str:
    return ((error or "").strip().splitlines() or ["no reason is known"])[-1]
