"""The results of a study: one SQLite file that survives whatever happens to the processes that write to it.

A run is *pending*, *running*, *finished* or *failed*. A worker takes a pending run in one transaction that also says
who it is; what it writes afterwards is accepted only while the run is still its own. A run whose worker has died
becomes pending again, and its evaluations are dropped.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.database import connect, transaction
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.results import Evaluation, Kind, Outcome, Record, Reference, Status
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.seeds import Seeds

FILE_NAME = "study.sqlite"
MAX_DEATHS = 2  # a run whose worker dies this often is failed: it may well be what kills it


class LostRunError(RuntimeError):
    """The run belongs to another worker now, or to none."""


class Store:
    """Access to a study's file from one process; each process opens its own.

    :param path: the file, created with its folder if ``create``
    :param create: whether to create it
    :param check: whether to read through it for damage first
    :param read_only: whether nothing will be written, not even to bring an older file up to date
    :raises FileNotFoundError: it does not exist, and is not to be created
    :raises ValueError: it is damaged, not a study, or of a newer version of this package
    """

    def __init__(self, path: str | Path, create: bool = False, check: bool = True, read_only: bool = False):
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: there is no study in {self.path.parent}")
        self._database = connect(self.path, create, check, read_only)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    # --- what is to be done

    def declare(
        self,
        specs: Sequence[RunSpec],
        command: str = "",
        references: Mapping[str, Reference] | None = None,
        whole: bool = False,
        seeds: Callable[[int], Seeds] | None = None,
    ) -> None:
        """Add the runs that are not there yet; those that are keep their results.

        Under the label of a run, in its environment, these are shown with it: runs of the same settings that were begun
        already, one for each number that is not given, such as those of a call for more seeds.

        :param command: by which the runs were asked for, for the record
        :param references: environment id -> reference scores, in place of earlier ones of the same environment
        :param whole: there is nothing else to the study: no other run that was not begun is shown, whatever its label,
            and its environments have no other reference scores
        :param seeds: number of a run -> its seeds; runs with others are not shown
        """
        environments = {spec.environment.id for spec in specs}
        groups: dict[tuple[str, str], list[RunSpec]] = {}
        for spec in specs:
            groups.setdefault((spec.label, spec.environment.id), []).append(spec)
        with transaction(self._database):
            self._database.execute("INSERT INTO calls (time, command) VALUES (?, ?)", (time.time(), command))
            if whole:
                self._database.executemany("DELETE FROM reference_scores WHERE env = ?", [(e,) for e in environments])
                self._database.execute("UPDATE runs SET shown = 0 WHERE status = 'pending'")
            self._database.executemany(
                "INSERT OR REPLACE INTO reference_scores (env, low, high) VALUES (?, ?, ?)",
                [(env, *scores) for env, scores in (references or {}).items()],
            )
            for spec in specs:
                self._insert(spec, "DO UPDATE SET label = excluded.label, spec = excluded.spec")
            for group in groups.values():
                self._show(group, seeds)

    def _show(self, given: Sequence[RunSpec], seeds: Callable[[int], Seeds] | None) -> None:
        """Of one label in one environment: what is given, and what goes with it, one run for each number."""
        label, env, settings = given[0].label, given[0].environment.id, {spec.settings_key for spec in given}
        begun = self._database.execute(
            "SELECT key, settings, replicate, spec FROM runs WHERE label = ? AND env = ? AND status != 'pending'"
            " ORDER BY shown, rowid",
            (label, env),
        )
        shown = {
            row["replicate"]: row["key"]
            for row in begun
            if row["settings"] in settings
            and (seeds is None or RunSpec.from_json(row["spec"]).seeds == seeds(row["replicate"]))
        }
        shown |= {spec.replicate: spec.key for spec in given}
        self._database.execute("UPDATE runs SET shown = 0 WHERE label = ? AND env = ?", (label, env))
        self._database.executemany("UPDATE runs SET shown = 1 WHERE key = ?", [(key,) for key in shown.values()])

    def _insert(self, spec: RunSpec, on_conflict: str) -> bool:
        """Whether the run is new, or has changed."""
        added = self._database.execute(
            "INSERT INTO runs (key, settings, label, env, replicate, spec, created, origin)"
            f" VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) {on_conflict}",
            (
                spec.key,
                spec.settings_key,
                spec.label,
                spec.environment.id,
                spec.replicate,
                spec.to_json(),
                time.time(),
                spec.origin,
            ),
        )
        return bool(added.rowcount)

    def add_imported(
        self,
        spec: RunSpec,
        evaluations: Sequence[Evaluation],
        provenance: Mapping[str, Any],
        outcome: Outcome | None = None,
    ) -> RunSpec | None:
        """Keep a run that was made elsewhere as a finished one. It is never carried out.

        :param spec: with ``origin``, by which the same run is known again; the store numbers it, and changes a label
            that other settings have in this environment
        :param evaluations: at least two, in the order of their steps
        :param provenance: where it comes from
        :return: the run as it is kept; ``None`` if it is there already
        :raises ValueError: it has no origin, or too few evaluations
        """
        if spec.origin is None or len(evaluations) < 2:
            raise ValueError(f"origin={spec.origin!r}, {len(evaluations)} evaluations: one, and at least 2, are needed")
        with transaction(self._database):
            if self._database.execute("SELECT 1 FROM runs WHERE origin = ?", (spec.origin,)).fetchone():
                return None
            spec = replace(spec, label=self._free_label(spec), replicate=self._next_replicate(spec))
            self._insert(spec, "DO NOTHING")
            self._database.execute(
                "UPDATE runs SET status = 'finished', step = ?, ended = ?, provenance = ?, outcome = ? WHERE key = ?",
                (
                    evaluations[-1].step,
                    time.time(),
                    json.dumps(dict(provenance)),
                    None if outcome is None else json.dumps(vars(outcome)),
                    spec.key,
                ),
            )
            for evaluation in evaluations:
                self._insert_evaluation(spec.key, "training", evaluation)
        return spec

    def _free_label(self, spec: RunSpec) -> str:
        """The label, numbered if other settings have it already in the same environment."""
        labels = (spec.label if number == 1 else f"{spec.label} {number}" for number in count(1))
        query = "SELECT 1 FROM runs WHERE label = ? AND env = ? AND settings != ?"
        taken = lambda label: self._database.execute(query, (label, spec.environment.id, spec.settings_key)).fetchone()  # noqa: E731
        return next(label for label in labels if not taken(label))

    def _next_replicate(self, spec: RunSpec) -> int:
        query = "SELECT COALESCE(MAX(replicate) + 1, 0) FROM runs WHERE settings = ?"
        return self._database.execute(query, (spec.settings_key,)).fetchone()[0]

    def pending(self, keys: Iterable[str], limit: int | None = None) -> list[RunSpec]:
        """Those of ``keys`` that nobody has begun, replicates first: every setting gets its first seed early.

        :param limit: how many at most
        """
        rows = self._database.execute("SELECT key FROM runs WHERE status = 'pending' ORDER BY replicate, rowid")
        wanted = set(keys)
        found = list(islice((row["key"] for row in rows if row["key"] in wanted), limit))
        query = "SELECT spec FROM runs WHERE key = ?"
        return [RunSpec.from_json(self._database.execute(query, (key,)).fetchone()["spec"]) for key in found]

    def statuses(self, keys: Iterable[str]) -> dict[str, sqlite3.Row]:
        """Key -> row with ``status``, ``step``, ``owner``, ``heartbeat``, ``error``, and ``latest``, a mean return."""
        latest = "(SELECT mean_return FROM evaluations WHERE run = key ORDER BY kind, step DESC LIMIT 1) AS latest"
        rows = self._database.execute(
            f"SELECT key, status, step, seconds, owner, heartbeat, deaths, error, outcome, {latest} FROM runs"
        )
        wanted = set(keys)
        return {row["key"]: row for row in rows if row["key"] in wanted}

    def retry_failed(self, keys: Iterable[str]) -> int:
        """Make the failed ones of ``keys`` pending; returns how many there were."""
        with transaction(self._database):
            return sum(self._reopen(key, "failed", deaths="0") for key in keys)

    def release_dead(self, silence: float, watched: Collection[str] = ()) -> list[str]:
        """Make runs pending whose worker has ended.

        :param silence: seconds without a sign of life after which a worker on another machine is taken for dead
        :param watched: keys of runs that are left alone, because their deaths are somebody's business already
        :return: keys of the runs
        """
        released = []
        with transaction(self._database):
            rows = self._database.execute("SELECT key, owner, heartbeat FROM runs WHERE status = 'running'").fetchall()
            for row in (row for row in rows if row["key"] not in watched):
                dead = Owner.parse(row["owner"]).is_dead()
                if dead or (dead is None and time.time() - row["heartbeat"] > silence):
                    self._reopen(row["key"], "running", deaths="deaths")
                    released.append(row["key"])
        return released

    def give_back(self, key: str, owner: str) -> None:
        """Make a run pending whose worker was ended, or lost with its machine: nothing is held against the run."""
        with transaction(self._database):
            row = self._database.execute(
                "SELECT 1 FROM runs WHERE key = ? AND status = 'running' AND owner = ?", (key, owner)
            ).fetchone()
            if row is not None:
                self._reopen(key, "running", deaths="deaths")

    def bury(self, key: str, owner: str, reason: str) -> None:
        """The worker of a run has died: once is bad luck and it runs again, :data:`MAX_DEATHS` times is a failure."""
        with transaction(self._database):
            row = self._database.execute(
                "SELECT deaths, step FROM runs WHERE key = ? AND status = 'running' AND owner = ?", (key, owner)
            ).fetchone()
            if row is None:
                return
            if row["deaths"] + 1 < MAX_DEATHS:
                self._reopen(key, "running", deaths="deaths + 1")
                return
            self._database.execute(
                "UPDATE runs SET status = 'failed', deaths = deaths + 1, ended = ?, error = ? WHERE key = ?",
                (time.time(), f"{reason} (for the {_ordinal(row['deaths'] + 1)} time), at step {row['step']}", key),
            )

    def _reopen(self, key: str, status: Status, deaths: str) -> bool:
        changed = self._database.execute(
            "UPDATE runs SET status = 'pending', owner = NULL, heartbeat = NULL, step = 0, seconds = 0, error = NULL,"
            f" started = NULL, ended = NULL, deaths = {deaths} WHERE key = ? AND status = ?",
            (key, status),
        )
        if changed.rowcount:
            self._database.execute("DELETE FROM evaluations WHERE run = ?", (key,))
        return bool(changed.rowcount)

    # --- what a worker does

    def claim(self, key: str, owner: str) -> RunSpec | None:
        """Take a pending run; ``None`` if somebody else has it, or it is done."""
        now = time.time()
        with transaction(self._database):
            taken = self._database.execute(
                "UPDATE runs SET status = 'running', owner = ?, heartbeat = ?, started = ?"
                " WHERE key = ? AND status = 'pending' RETURNING spec",
                (owner, now, now, key),
            ).fetchone()
        return None if taken is None else RunSpec.from_json(taken["spec"])

    def beat(self, key: str, owner: str, step: int, train_seconds: float) -> None:
        """A sign of life, and how far the run is.

        :raises LostRunError: it is no longer the worker's
        """
        self._update(key, owner, "step = ?, seconds = ?, heartbeat = ?", (step, train_seconds, time.time()))

    def add_evaluation(self, key: str, owner: str, kind: Kind, evaluation: Evaluation) -> None:
        """Keep an evaluation.

        :raises LostRunError: the run is no longer the worker's
        """
        with transaction(self._database):
            self._update(key, owner, "step = ?, heartbeat = ?", (evaluation.step, time.time()))
            self._insert_evaluation(key, kind, evaluation)

    def _insert_evaluation(self, key: str, kind: Kind, evaluation: Evaluation) -> None:
        self._database.execute(
            "INSERT INTO evaluations (run, kind, step, mean_return, returns, lengths, seconds, train_seconds)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key,
                kind,
                evaluation.step,
                evaluation.mean_return,
                json.dumps(evaluation.returns),
                json.dumps(evaluation.lengths),
                evaluation.seconds,
                evaluation.train_seconds,
            ),
        )

    def finish(self, key: str, owner: str, outcome: Outcome, provenance: dict[str, Any]) -> None:
        """The run is done.

        :raises LostRunError: it is no longer the worker's
        """
        values = (time.time(), json.dumps(vars(outcome)), json.dumps(provenance))
        self._update(key, owner, "status = 'finished', ended = ?, outcome = ?, provenance = ?", values)

    def fail(self, key: str, owner: str, error: str, provenance: dict[str, Any]) -> None:
        """The run cannot be done.

        :param error: the traceback
        :raises LostRunError: it is no longer the worker's
        """
        values = (time.time(), error, json.dumps(provenance))
        self._update(key, owner, "status = 'failed', ended = ?, error = ?, provenance = ?", values)

    def _update(self, key: str, owner: str, assignments: str, values: tuple[Any, ...]) -> None:
        changed = self._database.execute(
            f"UPDATE runs SET {assignments} WHERE key = ? AND owner = ? AND status = 'running'", (*values, key, owner)
        )
        if not changed.rowcount:
            raise LostRunError(f"run {key[:12]} is no longer the work of {owner}")

    # --- what has been done

    def records(self, hidden: bool = False) -> list[Record]:
        """All runs that are shown, in the order in which their settings were declared.

        :param hidden: the others as well
        """
        order = "(SELECT MIN(rowid) FROM runs AS first WHERE first.settings = runs.settings), replicate"
        evaluations: dict[str, dict[str, list[Evaluation]]] = {}
        for row in self._database.execute("SELECT * FROM evaluations ORDER BY step"):
            kinds = evaluations.setdefault(row["run"], {"training": [], "test": []})
            kinds[row["kind"]].append(_evaluation(row))
        rows = self._database.execute(f"SELECT * FROM runs WHERE shown OR ? ORDER BY {order}", (hidden,))
        return [_record(row, **evaluations.get(row["key"], {"training": [], "test": []})) for row in rows]

    def references(self) -> dict[str, Reference]:
        """Environment id -> its reference scores, where the study has any."""
        rows = self._database.execute("SELECT env, low, high FROM reference_scores ORDER BY rowid")
        return {row["env"]: Reference(row["low"], row["high"]) for row in rows}

    def commands(self) -> list[str]:
        """The commands by which runs were asked for, each once, in the order of their last use."""
        rows = self._database.execute("SELECT command FROM calls GROUP BY command ORDER BY MAX(time)")
        return [row["command"] for row in rows if row["command"]]

    def finished_by(self, keys: Iterable[str]) -> list[Mapping[str, Any]]:
        """Where those of ``keys`` that are finished come from, apart from imported ones."""
        rows = self._database.execute("SELECT key, provenance FROM runs WHERE status = 'finished' AND origin IS NULL")
        wanted = set(keys)
        return [json.loads(row["provenance"]) for row in rows if row["key"] in wanted]

    def count_hidden(self) -> int:
        """Number of runs that were begun, and that others with the same label have replaced."""
        return self._database.execute("SELECT COUNT(*) FROM runs WHERE NOT shown AND status != 'pending'").fetchone()[0]


def _evaluation(row: sqlite3.Row) -> Evaluation:
    returns, lengths = (tuple(json.loads(row[name])) for name in ("returns", "lengths"))
    return Evaluation(row["step"], returns, lengths, row["seconds"], row["train_seconds"])


def _record(row: sqlite3.Row, training: list[Evaluation], test: list[Evaluation]) -> Record:
    return Record(
        spec=RunSpec.from_json(row["spec"]),
        status=row["status"],
        step=row["step"],
        deaths=row["deaths"],
        error=row["error"],
        outcome=None if row["outcome"] is None else Outcome(**json.loads(row["outcome"])),
        provenance=None if row["provenance"] is None else json.loads(row["provenance"]),
        evaluations=tuple(training),
        test=test[0] if test else None,
    )


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")
