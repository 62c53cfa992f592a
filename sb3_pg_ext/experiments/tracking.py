"""Which trackers the runs of a command go to, and the trackers of one run."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_pg_ext.experiments.run_spec import RunSpec
    from sb3_pg_ext.experiments.trackers import Tracker

NAMES = ("tensorboard", "wandb", "mlflow")
PROJECT = "sb3_pg_ext"
_URI = "MLFLOW_TRACKING_URI"
_FEW_RETRIES = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # training waits meanwhile: seconds, where 7 take minutes


def add_tracking(add: Callable[..., Any]) -> None:
    """The options of a command."""
    track_help = f"also log to: {', '.join(NAMES)}; several with commas, or the option several times"
    add("--track", type=_names, action="extend", default=[], metavar="TRACKER[,...]", help=track_help)
    add("--track-project", metavar="NAME", default=PROJECT, help=f"project of W&B, experiment of MLflow ({PROJECT})")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(NAMES):
        allowed = f"{', '.join(NAMES)}; several as {','.join(NAMES[:2])}"
        raise argparse.ArgumentTypeError(f"{text!r} is no tracker; there are {allowed}")
    return names


def with_commas(argv: Sequence[str]) -> list[str]:
    """``--track a b`` as ``--track a,b``; so the list ends where the names do, and not with a file that follows."""
    words: list[str] = []
    listing = False
    for word in argv:
        if listing and word in NAMES:
            words[-1] += f",{word}"
        else:
            listing = words[-1:] == ["--track"] or word.startswith("--track=")
            words.append(word)
    return words


@dataclass(frozen=True)
class Tracking:
    """Where the runs of a command are tracked; no part of what a run is. It is handed to the processes of the workers.

    :param names: of :data:`NAMES`
    :param project: that the runs belong to
    :param folder: absolute path of what the trackers write on this machine
    :param study: name of the study that the runs belong to, if any
    :param uri: of MLflow's store
    """

    names: tuple[str, ...]
    project: str
    folder: str
    study: str | None
    uri: str

    @classmethod
    def prepared(
        cls, names: Sequence[str], project: str, folder: Path, study: str | None = None, shared_folder: bool = True
    ) -> Tracking | None:
        """Look whether all trackers work, before anything runs; ``None`` if there are none.

        :param folder: ``<folder>/tensorboard``, ``<folder>/wandb`` and ``<folder>/mlflow.db`` are written
        :param shared_folder: whether all workers can write to it
        :raises ImportError: one is not installed; the message says how to install it
        :raises ValueError: MLflow's store would be a file, and not all workers can write to it
        :raises ConnectionError: a server does not answer, or refuses the login
        """
        if not names:
            return None
        from sb3_pg_ext.experiments.trackers.mlflow import uri_of
        from sb3_pg_ext.experiments.trackers.tracker import require

        for name in names:
            require(name)
        if "mlflow" in names and not shared_folder and not os.environ.get(_URI):
            raise ValueError(f"--track mlflow: several machines need a server that all of them reach; set {_URI}")
        tracking = cls(tuple(dict.fromkeys(names)), project, str(folder.resolve()), study, uri_of(folder))
        for name in tracking.names:
            _CHECKS.get(name, lambda tracking: None)(tracking)
        return tracking

    def ways_to_look(self) -> str:
        """A command or address for each tracker, a line each."""
        folder = shlex.quote(os.path.relpath(self.folder))
        of_file = self.uri.startswith("sqlite:")
        ways = {
            "tensorboard": f"tensorboard --logdir {folder}/tensorboard",
            "wandb": f"wandb sync {folder}/wandb/offline-run-*  (what was written without a login)",
            "mlflow": f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}" if of_file else self.uri,
        }
        return "\n".join(f"  {ways[name]}" for name in self.names)


def _check_wandb(tracking: Tracking) -> None:
    from sb3_pg_ext.experiments.trackers.tracker import require
    from sb3_pg_ext.experiments.trackers.wandb import check_login

    check_login(require("wandb"))


def _check_mlflow(tracking: Tracking) -> None:
    from sb3_pg_ext.experiments.trackers import MlflowTracker
    from sb3_pg_ext.experiments.trackers.tracker import require

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault(*_FEW_RETRIES)
    try:
        MlflowTracker(tracking.project, uri=tracking.uri, folder=tracking.folder).connect()
    except require("mlflow").exceptions.MlflowException as error:
        raise ConnectionError(f"MLflow at {tracking.uri}: {error}") from error


_CHECKS: dict[str, Callable[[Tracking], None]] = {"wandb": _check_wandb, "mlflow": _check_mlflow}


@contextmanager
def tracked(tracking: Tracking | None, spec: RunSpec, folder: Path, stem: str, command: str) -> Iterator[list[Tracker]]:
    """The trackers of a run, open; they are closed with the block, as failed on an exception.

    A tracker that cannot be opened is left out with a warning: that everything is as it should be was seen before the
    first run, and a run is worth more than its copy.

    :param folder: that this process writes to
    :param stem: of file names
    :param command: that was typed
    """
    if tracking is None:
        yield []
        return
    with ExitStack() as stack:
        yield [stack.enter_context(tracker) for tracker in _begun(tracking, spec, folder, stem, command)]


def _begun(tracking: Tracking, spec: RunSpec, folder: Path, stem: str, command: str) -> Iterator[Tracker]:
    from sb3_pg_ext.experiments.trackers.description import describe_run

    run = describe_run(spec, tracking.study, tracking.folder, command)
    for name in tracking.names:
        try:
            tracker = _MAKERS[name](tracking, run, folder, stem)
            tracker.begin(run)
        except Exception as error:
            warnings.warn(f"{name} does not track this run: {error!r}", RuntimeWarning, stacklevel=2)
        else:
            yield tracker


def stale_files(folder: Path, stem: str) -> list[Path]:
    """What earlier attempts of a run have left that no later one writes over: event files, and a log.

    :param folder: of the study
    :param stem: of the run's file names
    """
    paths = [*_event_files(folder, stem), folder / "logs" / f"{stem}.log"]
    return [path for path in paths if path.is_file()]


def _event_files(folder: Path, stem: str) -> list[Path]:
    return sorted((folder / "tensorboard" / stem).glob("events.out.tfevents.*"))


def _tensorboard(tracking: Tracking, run: Any, folder: Path, stem: str) -> Tracker:
    from sb3_pg_ext.experiments.trackers import TensorboardTracker

    for left in _event_files(folder, stem):  # the log is this attempt's already
        left.unlink()
    return TensorboardTracker(folder / "tensorboard", name=stem)


def _wandb(tracking: Tracking, run: Any, folder: Path, stem: str) -> Tracker:
    from sb3_pg_ext.experiments.trackers import WandbTracker

    # Workers share a terminal, so nothing is printed; and a network that is gone does not hold up the next run.
    settings = {"console": "off", "silent": True, "finish_timeout": 300.0}
    return WandbTracker(tracking.project, folder=folder, settings=settings)


def _mlflow(tracking: Tracking, run: Any, folder: Path, stem: str) -> Tracker:
    from sb3_pg_ext.experiments.trackers import MlflowTracker

    os.environ.setdefault(*_FEW_RETRIES)
    tracker = MlflowTracker(tracking.project, uri=tracking.uri, folder=tracking.folder)
    if tracking.study is not None:  # where no run is carried out twice at the same time
        tracker.bury({name: run.tags[name] for name in ("key", "folder", "study")})
    return tracker


_MAKERS: dict[str, Callable[[Tracking, Any, Path, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
