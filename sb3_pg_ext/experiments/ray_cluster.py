"""Runs on the machines of a Ray cluster.

The study's file stays where the command runs: there, one actor reads and writes it, and workers anywhere ask that actor
for what local workers do themselves. So the machines need no shared folder, and nothing of a run depends on where it is
carried out.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import command
from sb3_pg_ext.experiments.results import Evaluation, Kind, Outcome
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import LostRunError, Store
from sb3_pg_ext.experiments.tracking import Tracking

_SECONDS_BETWEEN_BEATS = 5.0
_STARTS_IN_VAIN = 5
_SECONDS_FOR_AN_ANSWER = 10.0


class RayCluster:
    """Each run as a Ray task of one core, in a process of its own.

    A lost worker counts against its run as on one machine; a lost machine does not. The cluster may grow and shrink:
    as many runs as there are cores wait in its queue.

    :param store: of the study, on this machine
    :param jobs: how many runs are submitted at once; twice the cores of the cluster by default
    :param address: ``HOST:PORT`` of the head, or ``auto`` for a cluster that this machine is part of
    :param silence: seconds without a sign of life after which a worker is taken for hung, and ended
    :param tracking: where the runs are tracked
    :raises ModuleNotFoundError: Ray is not installed
    :raises ConnectionError: no cluster answers
    :raises ValueError: ``address`` is that of a Ray client
    """

    def __init__(
        self,
        store: Store,
        jobs: int | None = None,
        address: str = "auto",
        silence: float = 1800.0,
        tracking: Tracking | None = None,
    ):
        self.store, self.silence, self.tracking, self._limit = store, silence, tracking, jobs
        self._ray = _connect(address)
        self._owner = str(Owner.current())
        self._keeper = self._start_keeper()
        self._tasks: dict[str, Any] = {}
        self._in_vain = 0

    def _start_keeper(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        actor = self._ray.remote(num_cpus=0, scheduling_strategy=here)(Keeper)
        return actor.remote(str(Path(self.store.path).resolve()), self._owner)

    @property
    def jobs(self) -> int:
        """Runs at once, as the cluster is now."""
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        return cores if self._limit is None else min(cores, self._limit)

    @property
    def free(self) -> int:
        limit = 2 * self.jobs if self._limit is None else self._limit
        return max(limit, 1) - len(self._tasks)

    @property
    def keys(self) -> Collection[str]:
        return self._tasks.keys()

    def submit(self, spec: RunSpec) -> None:
        # A process for each task keeps memory bounded, and runs apart; what to do about its death is decided here.
        task = self._ray.remote(num_cpus=1, max_calls=1, max_retries=0)(work_remotely)
        self._tasks[spec.key] = task.options(name=spec.name).remote(self._keeper, spec.key, command(), self.tracking)

    def supervise(self, timeout: float) -> None:
        keys = {task: key for key, task in self._tasks.items()}
        if not keys:
            time.sleep(timeout)
            return
        self._ray.wait(list(keys), timeout=timeout)
        self._end_hung()
        for task in self._ray.wait(list(keys), num_returns=len(keys), timeout=0)[0]:
            if self._tasks.pop(keys[task], None) is not None:
                self._conclude(keys[task], task)

    def _conclude(self, key: str, task: Any) -> None:
        from ray.exceptions import NodeDiedError, RayError, RayTaskError

        try:
            self._ray.get(task)
            self._in_vain = 0
        except NodeDiedError:
            self.store.give_back(key, self._owner)
        except RayError as error:
            begun = self._is_under_way(self.store.statuses([key])[key])
            self.store.bury(key, self._owner, f"the worker process ended: {_first_line(error)}")
            self._in_vain = 0 if begun else self._in_vain + 1
            if isinstance(error, RayTaskError) or self._in_vain >= _STARTS_IN_VAIN:
                raise ConnectionError(f"the cluster cannot carry out runs: {_first_line(error)}") from error

    def _is_under_way(self, row: sqlite3.Row) -> bool:
        return row["status"] == "running" and row["owner"] == self._owner

    def _end_hung(self) -> None:
        for key, row in self.store.statuses(self._tasks).items():
            if self._is_under_way(row) and time.time() - row["heartbeat"] > self.silence:
                self._ray.cancel(self._tasks.pop(key), force=True)
                self.store.bury(key, self._owner, f"the worker gave no sign of life for {self.silence:g} s")

    def close(self) -> None:
        for task in self._tasks.values():
            self._ray.cancel(task, force=True)
        self._ray.kill(self._keeper)
        for key in self._tasks:
            self.store.give_back(key, self._owner)
        self._tasks.clear()
        self._ray.shutdown()


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
        return spec

    def write(self, attempt: str, method: str, key: str, *arguments: Any) -> None:
        """One of the methods of :class:`Store` that a worker needs."""
        self._check(attempt, key)
        getattr(self.store, method)(key, self.owner, *arguments)

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
    """What a worker needs of the store, by way of the :class:`Keeper`.

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
        self._ask("write", "beat", key, step, train_seconds)

    def add_evaluation(self, key: str, owner: str, kind: Kind, evaluation: Evaluation) -> None:
        self._ask("write", "add_evaluation", key, kind, evaluation)

    def finish(self, key: str, owner: str, outcome: Outcome, provenance: dict[str, Any]) -> None:
        self._send_files(key)
        self._ask("write", "finish", key, outcome, provenance)

    def fail(self, key: str, owner: str, error: str, provenance: dict[str, Any]) -> None:
        self._send_files(key)
        self._ask("write", "fail", key, error, provenance)

    def _send_files(self, key: str) -> None:
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and path.stat().st_size:
                self._ask("keep_file", key, path.relative_to(self._folder).as_posix(), path.read_bytes())


def work_remotely(keeper: Any, key: str, typed: str, tracking: Tracking | None = None) -> None:
    """The task: carry out a run on whatever machine this is.

    :param keeper: handle of the actor
    :param key: of the run
    :param typed: command, for the record
    :param tracking: where the run is tracked
    """
    from sb3_pg_ext.experiments.worker import do_run

    with tempfile.TemporaryDirectory() as name:
        do_run(RemoteLedger(keeper, Path(name)), key, Path(name), typed, _SECONDS_BETWEEN_BEATS, tracking)


def _connect(address: str) -> Any:
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise ValueError(f"address={address!r}: expected HOST:PORT of the head, or auto")
    if address.startswith("ray://"):
        raise ValueError(
            f"address={address!r}: the command must run on a machine of the cluster, where it can be reached by the "
            "others; give HOST:PORT of the head, or start it by: ray job submit"
        )
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the executor "ray" needs Ray: pip install "sb3_pg_ext[ray]"') from error
    try:
        _check_answer(address)
        ray.init(address, log_to_driver=False, configure_logging=False, runtime_env=_runtime_environment(os.environ))
    except OSError as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ConnectionError(
            f"no Ray cluster answers {where}; start one by: ray start --head, and on the other machines: "
            "ray start --address=HOST:6379"
        ) from error
    return ray


def _check_answer(address: str) -> None:
    """Ray itself goes on asking for minutes where nobody answers.

    :raises OSError: nobody answers
    """
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_FOR_AN_ANSWER).close()


def _runtime_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """One thread per process, as in local workers, and the search path for modules that register environments."""
    wanted = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH")
    return {"env_vars": {name: variables[name] for name in wanted if name in variables}}


def _first_line(error: Exception) -> str:
    return str(getattr(error, "cause", None) or error).strip().splitlines()[0]
