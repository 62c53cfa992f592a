"""The process that carries out one run of a study."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from sb3_pg_ext.experiments.executor import leave_safe_path
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import provenance
from sb3_pg_ext.experiments.results import Evaluation, Kind, Outcome
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.store import LostRunError, Store
from sb3_pg_ext.experiments.tracking import Tracking, tracked


class Ledger(Protocol):
    """What a worker needs of the store of its study; see the methods of :class:`Store`."""

    def claim(self, key: str, owner: str) -> RunSpec | None: ...

    def beat(self, key: str, owner: str, step: int, train_seconds: float) -> None: ...

    def add_evaluation(self, key: str, owner: str, kind: Kind, evaluation: Evaluation) -> None: ...

    def finish(self, key: str, owner: str, outcome: Outcome, provenance: dict[str, Any]) -> None: ...

    def fail(self, key: str, owner: str, error: str, provenance: dict[str, Any]) -> None: ...


def work(store_path: str, key: str, command: str, tracking: Tracking | None = None) -> None:
    """A process on the machine of the store: claim a run and carry it out.

    :param store_path: file of the study
    :param key: of the run
    :param command: for the record
    :param tracking: where the run is tracked
    """
    settle_in()
    with Store(store_path, check=False) as store:  # the parent has read through it
        do_run(store, key, Path(store_path).parent, command, tracking=tracking)


def do_run(
    ledger: Ledger,
    key: str,
    folder: Path,
    command: str,
    seconds_between_beats: float = 0.5,
    tracking: Tracking | None = None,
) -> None:
    """Claim a run and carry it out. All that it gives, a traceback included, goes to the ledger; files to the folder.

    :param key: of the run
    :param command: for the record
    :param tracking: where the run is tracked
    """
    owner = str(Owner.current())
    spec = ledger.claim(key, owner)
    if spec is None:
        return
    write_output_to(log_path(folder, spec))
    recorder = _LedgerRecorder(ledger, key, owner, seconds_between_beats)
    circumstances = {**provenance(), "command": command}
    with suppress(LostRunError):
        try:
            with tracked(tracking, spec, folder, file_stem(spec), command) as trackers:
                outcome = execute(spec, recorder, model_path(folder, spec), trackers)
        except LostRunError:
            raise
        except Exception:
            ledger.fail(key, owner, traceback.format_exc(), circumstances)
        else:
            ledger.finish(key, owner, outcome, circumstances)
    remove_if_empty(log_path(folder, spec))


def model_path(folder: Path, spec: RunSpec) -> Path:
    """Where the trained model of a run is kept."""
    return folder / "models" / f"{file_stem(spec)}.zip"


def log_path(folder: Path, spec: RunSpec) -> Path:
    """Where the warnings and prints of a run go, if it has any."""
    return folder / "logs" / f"{file_stem(spec)}.log"


def file_stem(spec: RunSpec) -> str:
    """A file name that says which run it belongs to."""
    name = re.sub(r"[^\w.=,-]+", "_", f"{spec.label}_{spec.environment.id}")[:100].strip("_")
    return f"{name}_seed{spec.replicate}_{spec.key[:8]}"


def write_output_to(path: Path) -> None:
    """Workers share the terminal with the progress display, so their output goes to a file, native crashes included."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()


def remove_if_empty(path: Path) -> None:
    """Leave no file behind for a process that had nothing to say."""
    sys.stdout.flush()
    sys.stderr.flush()
    if path.stat().st_size == 0:
        path.unlink()


class _LedgerRecorder:
    def __init__(self, ledger: Ledger, key: str, owner: str, seconds_between_beats: float):
        self.ledger, self.key, self.owner = ledger, key, owner
        self._between, self._next_beat = seconds_between_beats, 0.0

    def progress(self, step: int, train_seconds: float) -> None:
        if time.monotonic() >= self._next_beat:
            self.ledger.beat(self.key, self.owner, step, train_seconds)
            self._next_beat = time.monotonic() + self._between

    def evaluation(self, kind: Kind, evaluation: Evaluation) -> None:
        self.ledger.add_evaluation(self.key, self.owner, kind, evaluation)


def settle_in() -> None:
    """What a worker process does first."""
    leave_safe_path()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    _end_with_parent()


def _end_with_parent() -> None:
    """End this process when its parent ends.

    Without this a worker would go on after its parent was killed, unseen, on a core that the next call wants.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
