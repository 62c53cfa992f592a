"""Runs in MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from stable_baselines3.common.logger import Figure, HParam, Image

from sb3_pg_ext.experiments.trackers.description import Description, flat
from sb3_pg_ext.experiments.trackers.tracker import Status, Tracker, require
from sb3_pg_ext.experiments.trackers.values import number, pixels

_STATUSES: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_SECONDS_BETWEEN_WRITES = 1.0  # a write to SQLite waits for the disk, and other processes wait for it
_LONGEST_BATCH = 100  # what MLflow takes of parameters and tags; of metrics it takes 1000


class MlflowTracker(Tracker):
    """A run in MLflow, beside any that is active.

    :param project: the experiment
    :param uri: of the store; by default ``MLFLOW_TRACKING_URI``, else SQLite in ``<folder>/mlflow.db``
    :param folder: of the SQLite file, and of images in ``<folder>/mlartifacts``
    """

    package: ClassVar[str] = "mlflow"

    def __init__(
        self,
        project: str = "sb3_pg_ext",
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        uri: str | None = None,
        folder: str | Path = ".",
    ):
        super().__init__(name, group, tags, hyperparameters)
        self.project, self.folder = project, Path(folder).resolve()
        self.uri = uri or uri_of(self.folder)

    def connect(self) -> tuple[Any, str]:
        """The client, and the id of the experiment, which is made if there is none yet."""
        mlflow = require(self.package)
        if self._artifacts is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.uri):
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            return client, _experiment(mlflow, client, self.project, self._artifacts)

    @property
    def _artifacts(self) -> str | None:
        """Where files go; a server knows by itself."""
        return (self.folder / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None

    def _open(self, run: Description) -> _Run:
        client, experiment = self.connect()
        tags = {"group": run.group, **run.tags, **flat(run.provenance), **_standard_tags(run)}
        return _Run(client, experiment, run, {_name(name): str(text) for name, text in tags.items() if text})

    def bury(self, tags: Mapping[str, str]) -> None:
        """Mark the open runs that have these tags as killed: their process is gone."""
        client, experiment = self.connect()
        quotable = [f"tags.`{name}` = '{text}'" for name, text in tags.items() if "'" not in text]
        for left in client.search_runs([experiment], " and ".join(["attributes.status = 'RUNNING'", *quotable])):
            if tags.items() <= left.data.tags.items():
                client.set_terminated(left.info.run_id, "KILLED")


def uri_of(folder: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or a file in ``folder``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """No other process makes the tables of an SQLite file at the same time, which would leave it in ruins."""
    from filelock import FileLock  # comes with torch

    with FileLock(f"{uri.removeprefix('sqlite:///')}.lock") if uri.startswith("sqlite:///") else nullcontext():
        yield


def _experiment(mlflow: Any, client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except mlflow.exceptions.MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _standard_tags(run: Description) -> dict[str, str]:
    """Names that MLflow's own page has columns for."""
    commit = str(run.provenance.get("git") or "").partition(" ")[0]
    tags = {"mlflow.source.name": run.provenance.get("command"), "mlflow.source.git.commit": commit}
    return {name: text for name, text in tags.items() if text}


def _name(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250]


class _Run:
    def __init__(self, client: Any, experiment: str, run: Description, tags: dict[str, str]):
        self.client = client
        self.id = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        self.metrics: list[Any] = []
        self.params: dict[str, Any] = {}
        self.tags: dict[str, str] = {}
        self.params.update(flat(run.hyperparameters))
        self._send()
        self._due = 0.0

    def put(self, key: str, value: Any, step: int) -> None:
        scalar, key = number(value), _name(key)
        if scalar is not None:
            self.metrics.append(self._entities.Metric(key, scalar, time.time_ns() // 1_000_000, step))
        elif isinstance(value, str):
            self.tags[key] = value
        elif isinstance(value, HParam):
            self.params.update(flat(value.hparam_dict))
        elif isinstance(value, Image):
            self.client.log_image(self.id, pixels(value), key=key, step=step)
        elif isinstance(value, Figure):
            self.client.log_figure(self.id, value.figure, f"{key}/{step}.png")
        else:
            raise TypeError("MLflow has nothing to show it with")

    def flush(self, step: int) -> None:
        if time.monotonic() >= self._due:
            self._send()

    def _send(self) -> None:
        """What is not taken stays for the next time."""
        entities = self._entities
        params = [entities.Param(_name(name), str(value)) for name, value in self.params.items()]
        for part in _parts(params):
            self.client.log_batch(self.id, params=part)
        self.params.clear()
        for part in _parts([entities.RunTag(name, text) for name, text in self.tags.items()]):
            self.client.log_batch(self.id, tags=part)
        self.tags.clear()
        while self.metrics:
            self.client.log_batch(self.id, metrics=self.metrics[:1000])
            del self.metrics[:1000]
        self._due = time.monotonic() + _SECONDS_BETWEEN_WRITES

    @property
    def _entities(self) -> Any:
        return require("mlflow").entities

    def finish(self, status: Status) -> None:
        try:
            self._send()
        finally:
            self.client.set_terminated(self.id, _STATUSES[status])


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + _LONGEST_BATCH] for at in range(0, len(items), _LONGEST_BATCH))
