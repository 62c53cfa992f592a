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
from multiprocessing import connection
from pathlib import Path

from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import provenance
from sb3_pg_ext.experiments.results import Evaluation, Kind
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.store import LostRunError, Store

_SECONDS_BETWEEN_BEATS = 0.5


def work(store_path: str, key: str, command: str) -> None:
    """Claim a run and carry it out. All that it gives, a traceback included, goes to the store.

    :param store_path: file of the study
    :param key: of the run
    :param command: for the record
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    owner = str(Owner.current())
    with Store(store_path, check=False) as store:  # the parent has read through it
        spec = store.claim(key, owner)
        if spec is None:
            return
        write_output_to(log_path(Path(store_path).parent, spec))
        recorder = _StoreRecorder(store, key, owner)
        circumstances = {**provenance(), "command": command}
        try:
            outcome = execute(spec, recorder, model_path(Path(store_path).parent, spec))
        except LostRunError:
            return
        except Exception:
            store.fail(key, owner, traceback.format_exc(), circumstances)
        else:
            store.finish(key, owner, outcome, circumstances)
        finally:
            remove_if_empty(log_path(Path(store_path).parent, spec))


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


class _StoreRecorder:
    def __init__(self, store: Store, key: str, owner: str):
        self.store, self.key, self.owner = store, key, owner
        self._next_beat = 0.0

    def progress(self, step: int, train_seconds: float) -> None:
        if time.monotonic() >= self._next_beat:
            self.store.beat(self.key, self.owner, step, train_seconds)
            self._next_beat = time.monotonic() + _SECONDS_BETWEEN_BEATS

    def evaluation(self, kind: Kind, evaluation: Evaluation) -> None:
        self.store.add_evaluation(self.key, self.owner, kind, evaluation)


def end_with_parent() -> None:
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
