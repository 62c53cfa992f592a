"""The callback that all trackers share."""

from __future__ import annotations

import importlib
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from sb3_pg_ext.experiments.evaluation import random_state_kept
from sb3_pg_ext.experiments.trackers.description import Description, describe_model

Status = Literal["finished", "failed", "killed"]
_FAILURES_ENOUGH = 3


class Session(Protocol):
    """A run that is open in a tracker."""

    def put(self, key: str, value: Any, step: int) -> None:
        """Take a value.

        :raises Exception: the tracker has nothing to show it with
        """

    def flush(self, step: int) -> None:
        """Hand on what was taken at ``step``."""

    def finish(self, status: Status) -> None:
        """Close the run."""


class Tracker(BaseCallback):
    """Copies everything that a model logs into an experiment tracker, over environment steps.

    A run begins with ``learn`` and ends with it. In a ``with`` block it goes on until the block ends, over all that is
    learnt and logged inside, and an exception marks it as failed; without one that is done when the program ends::

        with MlflowTracker(project="cartpole") as tracker:
            model.learn(100_000, callback=tracker)
            model.logger.record("test/mean_reward", 500.0)
            model.logger.dump(model.num_timesteps)

    Nothing that goes wrong once the run is open ends training: it is warned of, and after three failures in a row
    nothing more is written. Random numbers go on as if nothing had been tracked.

    :param name: of the run
    :param group: runs that belong together
    :param tags: by which it is found, beside algorithm, environment and seed
    :param hyperparameters: by default the arguments of the model's constructor as they are
    :raises ImportError: the tracker is not installed
    """

    #: The module that is imported, the extra that installs it, and the word by which ``exclude=`` leaves it out.
    package: ClassVar[str]

    def __init__(
        self,
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        require(self.package)
        self.name, self.group, self.tags, self.hyperparameters = name, group, dict(tags or {}), hyperparameters
        self._writer = _Writer(self)
        self._session: Session | None = None
        self._net: weakref.finalize | None = None
        self._lasting = False
        self._failures = 0
        self._refused: set[str] = set()

    @abstractmethod
    def _open(self, run: Description) -> Session:
        """Begin a run."""

    def begin(self, run: Description) -> None:
        """Open the run; ``learn`` does it by itself where it has not been done."""
        with random_state_kept():
            self._session = self._open(run)
        self._failures = 0
        # An exception in learn() passes no callback: what is not closed by then failed.
        self._net = weakref.finalize(self, _abandon, self._session)

    def end(self, status: Status = "finished") -> None:
        """Close the run, if one is open."""
        if self._net is None or not self._net.detach():
            return
        assert self._session is not None
        if hasattr(self, "model") and self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)
        session, self._session = self._session, None
        try:
            with random_state_kept():
                session.finish(status)
        except Exception as error:
            self._warn(f"could not close the run: {error!r}")

    def __enter__(self) -> Self:
        self._lasting = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lasting = False
        self.end("finished" if kind is None else "failed" if issubclass(kind, Exception) else "killed")

    def _init_callback(self) -> None:
        if not self._lasting:
            self.end("failed")  # left open by an earlier learn()
        if self._session is None:
            self.begin(self._description())
        if self._writer not in self.logger.output_formats:
            self.logger.output_formats.append(self._writer)

    def _description(self) -> Description:
        model = describe_model(self.model)
        return replace(
            model,
            name=self.name,
            group=self.group,
            tags={**model.tags, **self.tags},
            hyperparameters=model.hyperparameters if self.hyperparameters is None else self.hyperparameters,
        )

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if not self._lasting:
            self.end()

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """
        :param values: what was logged
        :param step: environment steps so far
        """
        if self._session is None or self._failures == _FAILURES_ENOUGH:
            return
        with random_state_kept():
            for key, value in values.items():
                self._put(self._session, key, value, step)
            try:
                self._session.flush(step)
                self._failures = 0
            except Exception as error:
                self._failures += 1
                last = self._failures == _FAILURES_ENOUGH
                self._warn(f"{error!r} at step {step}{'; nothing more is written' if last else ''}")

    def _put(self, session: Session, key: str, value: Any, step: int) -> None:
        try:
            session.put(key, value, step)
        except Exception as error:
            if key not in self._refused:
                self._refused.add(key)
                self._warn(f"{key!r}, a value of type {type(value).__name__}, is left out: {error}")

    def _warn(self, text: str) -> None:
        warnings.warn(f"{type(self).__name__}: {text}", RuntimeWarning, stacklevel=2)


def _abandon(session: Session) -> None:
    with suppress(Exception):  # at the end of the program the tracker may have closed the run by itself
        session.finish("failed")


class _Writer(KVWriter):
    """Where the model's logger writes to."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.tracker.write(filter_excluded_keys(key_values, key_excluded, self.tracker.package), step)

    def close(self) -> None:
        """The run outlives the logger."""


def require(package: str) -> Any:
    """The module of a tracker.

    :raises ImportError: it is not installed; the message says how to install it
    """
    try:
        module = importlib.import_module(package)
        if module.__spec__ is not None and module.__spec__.origin is None:
            raise ImportError(f"what is found is only a folder of that name, {next(iter(module.__path__))}")
        return module
    except ImportError as error:
        what = package if package == "tensorboard" else f'"sb3_pg_ext[{package}]"'
        raise ImportError(f"{package} is needed to track with it: pip install {what} ({error})") from None
