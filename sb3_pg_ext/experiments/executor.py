"""Where runs are carried out. An executor starts them; what they give goes through the store, never through it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import command
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.tracking import Tracking

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What torch imports when it makes the first optimizer: a second of work, once for all runs instead of in each.
_LATE = "torch._dynamo"
# With it, a file in the current folder does not stand in for what is imported beforehand.
_SAFE_PATH, _OF_THE_SERVER = "PYTHONSAFEPATH", "of the server that starts workers"


class Executor(Protocol):
    """What a study needs of the machinery that its runs are carried out with."""

    @property
    def free(self) -> int:
        """How many runs could be submitted now."""

    @property
    def keys(self) -> Collection[str]:
        """Of the runs that were submitted and have not ended."""

    def submit(self, spec: RunSpec) -> None:
        """Start a run."""

    def supervise(self, timeout: float) -> None:
        """Wait until a run has ended, ``timeout`` seconds at most; see that none is left behind by a dead worker."""

    def close(self) -> None:
        """End whatever is still under way."""


class LocalProcesses:
    """Each run in a process of its own, so that a crash, a kill or a leak costs that run and nothing else.

    :param store: of the study
    :param jobs: how many run at once; one per usable core by default
    :param silence: seconds without a sign of life after which a worker is taken for hung, and ended
    :param tracking: where the runs are tracked
    """

    def __init__(
        self, store: Store, jobs: int | None = None, silence: float = 1800.0, tracking: Tracking | None = None
    ):
        self.store, self.silence, self.tracking = store, silence, tracking
        self.jobs = jobs or usable_cores()
        self._context = context()
        self._workers: dict[str, BaseProcess] = {}

    @property
    def free(self) -> int:
        return self.jobs - len(self._workers)

    @property
    def keys(self) -> Collection[str]:
        return self._workers.keys()

    def submit(self, spec: RunSpec) -> None:
        from sb3_pg_ext.experiments.worker import work

        path = str(Path(self.store.path).resolve())
        arguments = (path, spec.key, command(), self.tracking)
        worker: Any = self._context.Process(target=work, args=arguments, name=spec.name)
        worker.start()
        self._workers[spec.key] = worker

    def supervise(self, timeout: float) -> None:
        connection.wait([worker.sentinel for worker in self._workers.values()], timeout)
        self._end_hung()
        for key, worker in list(self._workers.items()):
            if not worker.is_alive():
                worker.join()
                del self._workers[key]
                self._bury(key, worker)

    def _end_hung(self) -> None:
        rows = self.store.statuses(self._workers)
        for key, worker in self._workers.items():
            row = rows[key]
            if row["status"] == "running" and time.time() - row["heartbeat"] > self.silence:
                worker.kill()
                worker.join()

    def _bury(self, key: str, worker: BaseProcess) -> None:
        row = self.store.statuses([key])[key]
        if row["status"] == "running" and Owner.parse(row["owner"]).pid == worker.pid:
            self.store.bury(key, row["owner"], f"the worker process ended with {_cause(worker.exitcode)}")

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            worker.join()
        self._workers.clear()
        self.store.release_dead(silence=float("inf"))


def _cause(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    hint = ", as the system does when memory runs out, or after no sign of life" if exitcode == -9 else ""
    return f"signal {-exitcode}{hint}"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> Any:
    """How workers are started: from a server that has imported what they need, once, or anew where there is no fork."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def warm_up(preload: Sequence[str] = ("sb3_pg_ext.experiments.worker", "sb3_contrib")) -> None:
    """Begin to import torch in the background; to be called as early as it is clear that there will be runs.

    One thread per process: the cores are shared by the runs, small networks are slower with more, and results depend on
    the number.

    :param preload: modules that the workers need
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    workers = context()
    if workers.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        workers.set_forkserver_preload([*preload, _LATE])
        with _safe_path(), _deaf_to_ctrl_c():
            forkserver.ensure_running()


@contextmanager
def _safe_path() -> Iterator[None]:
    if _SAFE_PATH in os.environ:
        yield
        return
    os.environ[_SAFE_PATH] = _OF_THE_SERVER
    try:
        yield
    finally:
        del os.environ[_SAFE_PATH]


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started in the block is: Ctrl-C is for this process, which ends its workers, and alone says so."""
    if threading.current_thread() is not threading.main_thread():  # where signals are none of its business
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def leave_safe_path() -> None:
    """In a worker: the programs that an environment starts look for modules as they always do."""
    if os.environ.get(_SAFE_PATH) == _OF_THE_SERVER:
        del os.environ[_SAFE_PATH]
