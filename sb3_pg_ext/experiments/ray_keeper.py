"""The two ends of the wire between the file of a study and a worker on another machine."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_pg_ext import registry
from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.provenance import versions
from sb3_pg_ext.experiments.results import Evaluation, Kind, Outcome
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import LostRunError, Store
from sb3_pg_ext.experiments.tracking import Tracking, stale_files
from sb3_pg_ext.experiments.worker import do_run, file_stem


class Keeper:
    """The actor that has the study's file open, for all workers of one command.

    What a worker writes is taken only while its attempt is the latest of that run: one that was given up, but lives on
    behind a cut wire, cannot spoil the results of its successor.

    :param path: of the file
    :param owner: in whose name runs are claimed; when that process dies, they are free
    """

    def __init__(self, path: str, owner: str):
        self.store, self.owner = Store(path, check=False), owner
        self._attempts: dict[str, str] = {}

    def claim(self, attempt: str, key: str) -> RunSpec | None:
        spec = self.store.claim(key, self.owner)
        if spec is not None:
            self._attempts[key] = attempt
            for path in stale_files(self.store.path.parent, file_stem(spec)):
                path.unlink()
        return spec

    def beat(self, attempt: str, key: str, step: int, train_seconds: float) -> None:
        self._check(attempt, key)
        self.store.beat(key, self.owner, step, train_seconds)

    def add_evaluation(self, attempt: str, key: str, kind: Kind, evaluation: Evaluation) -> None:
        self._check(attempt, key)
        self.store.add_evaluation(key, self.owner, kind, evaluation)

    def finish(self, attempt: str, key: str, outcome: Outcome, provenance: dict[str, Any]) -> None:
        self._check(attempt, key)
        self.store.finish(key, self.owner, outcome, provenance)

    def fail(self, attempt: str, key: str, error: str, provenance: dict[str, Any]) -> None:
        self._check(attempt, key)
        self.store.fail(key, self.owner, error, provenance)

    def keep_file(self, attempt: str, key: str, name: str, content: bytes) -> None:
        """A file that a run has made, under its name in the folder of the study."""
        self._check(attempt, key)
        path = self.store.path.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def _check(self, attempt: str, key: str) -> None:
        if self._attempts.get(key) != attempt:
            raise LostRunError(f"run {key[:12]} is the work of another attempt now")


class RemoteLedger:
    """What a worker needs of the store, by way of the :class:`Keeper`, in whose name the runs are claimed.

    :param keeper: handle of the actor
    :param folder: of this worker, with the files that the run makes
    """

    def __init__(self, keeper: Any, folder: Path):
        self._keeper, self._folder = keeper, folder
        self._attempt = uuid.uuid4().hex

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._keeper, method).remote(self._attempt, *arguments))

    def claim(self, key: str, owner: str) -> RunSpec | None:
        return self._ask("claim", key)

    def beat(self, key: str, owner: str, step: int, train_seconds: float) -> None:
        self._ask("beat", key, step, train_seconds)

    def add_evaluation(self, key: str, owner: str, kind: Kind, evaluation: Evaluation) -> None:
        self._ask("add_evaluation", key, kind, evaluation)

    def finish(self, key: str, owner: str, outcome: Outcome, provenance: dict[str, Any]) -> None:
        self._send_files(key)
        self._ask("finish", key, outcome, provenance)

    def fail(self, key: str, owner: str, error: str, provenance: dict[str, Any]) -> None:
        self._send_files(key)
        self._ask("fail", key, error, provenance)

    def _send_files(self, key: str) -> None:
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and path.stat().st_size:
                self._ask("keep_file", key, path.relative_to(self._folder).as_posix(), path.read_bytes())


def work_remotely(keeper: Any, spec: RunSpec, command: str, beats_every: float, tracking: Tracking | None) -> str:
    """Carry out a run on whatever machine this is.

    :param keeper: handle of the actor
    :param command: for the record
    :param beats_every: seconds between signs of life
    :param tracking: where the run is tracked
    :return: why this machine cannot; nothing if it has
    """
    others = other_versions(spec.algo, spec.versions)
    if others:
        return others
    with tempfile.TemporaryDirectory() as name:
        do_run(RemoteLedger(keeper, Path(name)), spec.key, Path(name), command, beats_every, tracking)
    return ""


def other_versions(algo: str, wanted: Mapping[str, str]) -> str:
    """What differs here from the versions that a run is described for: with them, its numbers could."""
    here = versions(registry.get(algo).cls)
    return ", ".join(f"{name} {here.get(name)} instead of {v}" for name, v in wanted.items() if here.get(name) != v)
