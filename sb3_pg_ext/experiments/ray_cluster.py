"""Runs on the machines of a Ray cluster.

The study's file stays where the command runs: there, one actor reads and writes it, and workers anywhere ask that actor
for what local workers do themselves. So the machines need no shared folder, and nothing of a run depends on where it is
carried out.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.executor import THREAD_VARIABLES
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import command
from sb3_pg_ext.experiments.ray_keeper import Keeper
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.tracking import Tracking

_SECONDS_BETWEEN_BEATS = 5.0
_STARTS_IN_VAIN = 5  # workers in a row that died before they had a run: the next would die as well
_SECONDS_FOR_AN_ANSWER = 10.0


class RayCluster:
    """Each run as a Ray task of one core, in a process of its own.

    A lost worker counts against its run as on one machine; a lost machine does not, nor does one that has other
    versions, which gets no more runs. The cluster may grow and shrink: as many runs as there are cores wait in its
    queue.

    :param store: of the study, on this machine
    :param ray: connected, see :func:`connect`
    :param jobs: how many runs are submitted at once; twice the cores of the cluster by default
    :param silence: seconds without a sign of life after which a worker is taken for hung, and ended
    :param tracking: where the runs are tracked
    """

    def __init__(
        self,
        store: Store,
        ray: Any,
        jobs: int | None = None,
        silence: float = 1800.0,
        tracking: Tracking | None = None,
    ):
        self.store, self.silence, self.tracking, self._limit = store, silence, tracking, jobs
        self._ray, self._owner = ray, str(Owner.current())
        self._keeper = self._start_keeper()
        # A process for each task keeps memory bounded, and runs apart; what to do about its death is decided here.
        self._task = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_carried_task())
        self._tasks: dict[str, Any] = {}
        self._unfit: dict[str, str] = {}  # node -> why
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
        beats_every = min(_SECONDS_BETWEEN_BEATS, self.silence / 4)
        task = self._task.options(name=spec.name, **self._elsewhere())
        self._tasks[spec.key] = task.remote(self._keeper, spec, command(), beats_every, self.tracking)

    def _elsewhere(self) -> dict[str, Any]:
        """Options of a task that keep it from the machines that cannot carry it out."""
        from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

        if not self._unfit:
            return {}
        return {"scheduling_strategy": NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self._unfit)})}

    def supervise(self, timeout: float) -> None:
        tasks = list(self._tasks.values())
        if not tasks:
            time.sleep(timeout)
            return
        self._ray.wait(tasks, timeout=timeout)
        self._end_hung()
        ended = set(self._ray.wait(tasks, num_returns=len(tasks), timeout=0)[0])
        for key in [key for key, task in self._tasks.items() if task in ended]:
            self._conclude(key, self._tasks.pop(key))

    def _conclude(self, key: str, task: Any) -> None:
        """Have a run done again if its task has not come to an end of its own."""
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

        try:
            node, misfit = self._ray.get(task)
        except NodeDiedError:
            self.store.give_back(key, self._owner)
        except (WorkerCrashedError, OutOfMemoryError) as error:
            self._bury(key, f"the worker process ended: {_first_line(error)}")
        except RayError as error:
            behind = _behind(error)
            if behind is error or isinstance(behind, RayActorError):  # the cluster is lost, or the keeper
                self.store.give_back(key, self._owner)
                raise ConnectionError(f"the cluster cannot carry out runs: {_first_line(error)}") from error
            self._bury(key, f"its task ended by an error: {type(behind).__name__}: {_first_line(error)}")
        else:
            self._in_vain = 0
            if misfit:
                self._leave_out(node, misfit)

    def _bury(self, key: str, reason: str) -> None:
        begun = self._is_under_way(self.store.statuses([key])[key])
        self._in_vain = 0 if begun else self._in_vain + 1
        self.store.bury(key, self._owner, reason)
        if self._in_vain >= _STARTS_IN_VAIN:
            raise ConnectionError(f"{_STARTS_IN_VAIN} workers in a row have died at their start: {reason}")

    def _leave_out(self, node: str, misfit: str) -> None:
        nodes = {n["NodeID"]: n for n in self._ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
        if node in nodes and node not in self._unfit:
            print(f"{nodes[node]['NodeManagerAddress']} gets no runs: it has {misfit}", file=sys.stderr, flush=True)
        self._unfit[node] = misfit
        if nodes.keys() <= self._unfit.keys():
            raise ConnectionError(f"no machine of the cluster can carry out the runs: {misfit}")

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


def _carried_task() -> Callable[..., tuple[str, str]]:
    """The task, as a function that Ray carries to the workers itself: this package may be missing there."""

    def task(*arguments: Any) -> tuple[str, str]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        try:
            from sb3_pg_ext.experiments.ray_keeper import work_remotely
        except ImportError as error:
            return node, f"no sb3_pg_ext that works: {error}"
        return node, work_remotely(*arguments)

    return task


def connect(address: str | None = None) -> Any:
    """Become part of a Ray cluster.

    :param address: ``HOST:PORT`` of the head; by default that of the variable ``RAY_ADDRESS``, or of a cluster that
        this machine belongs to
    :return: the module ``ray``
    :raises ModuleNotFoundError: Ray is not installed
    :raises ConnectionError: no cluster answers, or not as one of this version
    :raises ValueError: ``address`` is of another form, or that of a Ray client
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_form(address)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the executor "ray" needs Ray: pip install "sb3_pg_ext[ray]"') from error
    # One thread per process, as in local workers, and the search path for modules that register environments, if any.
    paths = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
    variables = {**dict.fromkeys(THREAD_VARIABLES, "1"), **paths}
    try:
        _check_answer(address)
        ray.init(address, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": variables})
    except OSError as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ConnectionError(
            f"no Ray cluster answers {where}; start one by: ray start --head, and on the other machines: "
            "ray start --address=HOST:6379"
        ) from error
    except RuntimeError as error:
        raise ConnectionError(f"Ray at {address}: {_first_line(error)}") from error
    return ray


def _check_form(address: str) -> None:
    if address.startswith("ray://"):
        raise ValueError(
            f"address={address!r}: the command must run on a machine of the cluster, where it can be reached by the "
            "others; give HOST:PORT of the head, or start it by: ray job submit"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise ValueError(f"address={address!r}: expected HOST:PORT of the head, or auto")


def _check_answer(address: str) -> None:
    """Ray itself goes on asking for minutes where nobody answers.

    :raises OSError: nobody answers
    """
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_FOR_AN_ANSWER).close()


def _first_line(error: Exception) -> str:
    """The first line of what an error, or the one behind it, says."""
    behind = _behind(error)
    return next(iter(str(behind).strip().splitlines()), type(behind).__name__)


def _behind(error: BaseException) -> BaseException:
    """What went wrong in a task, or in the actor that it has asked, without Ray's wrapping; else ``error`` itself."""
    cause = getattr(error, "cause", None)
    return _behind(cause) if isinstance(cause, BaseException) else error
