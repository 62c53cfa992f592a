"""One run, described completely: what makes two runs the same is what their descriptions hold, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from sb3_pg_ext.experiments.seeds import Seeds

_NOT_IDENTITY = ("label", "arguments")  # a name for display; and what `hyperparameters` holds already


@dataclass(frozen=True)
class Environment:
    """What the environments of a run are.

    :param id: as registered in gymnasium, or ``module:Name-v0``
    :param n_envs: number N of copies to train in
    :param vec_env: how they run: ``"dummy"``, ``"subproc"`` or ``"native"``
    :param kwargs: passed to the environment
    :param wrappers: names of gymnasium wrappers around each copy, the innermost first
    :param normalize: arguments of ``VecNormalize``; ``None`` leaves it out
    :param frame_stack: number of frames stacked; ``None`` leaves it out
    """

    id: str
    n_envs: int = 1
    vec_env: str = "dummy"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    normalize: Mapping[str, Any] | None = None
    frame_stack: int | None = None


@dataclass(frozen=True)
class Protocol:
    """How a run is judged.

    :param every: environment steps between evaluations; there is one before the first step and one at the end as well
    :param episodes: episodes of each evaluation
    :param deterministic: act by the mode of the policy instead of sampling
    :param test_episodes: episodes of the test after training; 0 for none
    """

    every: int
    episodes: int = 20
    deterministic: bool = True
    test_episodes: int = 100


@dataclass(frozen=True)
class RunSpec:
    """Everything that the outcome of one training run depends on.

    :param label: the name under which results are shown; no part of the run's identity
    :param algo: key of the registry
    :param policy: name of the policy class; ``None`` chooses by the observation space
    :param environment: where it trains
    :param replicate: number of the run within a study, from 0
    :param seeds: seeds of training, evaluation and test
    :param total_steps: environment steps, summed over all copies
    :param arguments: constructor arguments that are passed, as plain data
    :param hyperparameters: the same with all defaults of the signature filled in
    :param protocol: how it is judged
    :param versions: package -> version
    :param threads: of torch; sums of floats depend on it
    :param origin: of a run that was made elsewhere: digest of the files that it was read from
    """

    label: str
    algo: str
    policy: str | None
    environment: Environment
    replicate: int
    seeds: Seeds
    total_steps: int
    arguments: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    protocol: Protocol
    versions: Mapping[str, str]
    threads: int = 1
    origin: str | None = None

    def to_json(self) -> str:
        """Canonical text: sorted keys, no spaces; :meth:`from_json` is the inverse."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The run that :meth:`to_json` has written."""
        fields = json.loads(text)
        environment = fields.pop("environment")
        environment["wrappers"] = tuple(environment["wrappers"])
        return cls(
            environment=Environment(**environment),
            seeds=Seeds(**fields.pop("seeds")),
            protocol=Protocol(**fields.pop("protocol")),
            **fields,
        )

    @cached_property
    def key(self) -> str:
        """SHA-256 of the run's content: the same run has the same key in every process and on every machine."""
        content = {name: value for name, value in asdict(self).items() if name not in _NOT_IDENTITY}
        # What is None counts as absent: a field that a later version adds changes no key as long as it is not used.
        content["environment"] = {name: value for name, value in content["environment"].items() if value is not None}
        content["protocol"] = {name: value for name, value in content["protocol"].items() if value is not None}
        return _digest({name: value for name, value in content.items() if value is not None})

    @cached_property
    def settings_key(self) -> str:
        """The key without seeds: equal for the replicates of one setting.

        Of runs that were made elsewhere, what was counted afterwards differs from replicate to replicate, and is left
        out: the steps, and where between them there is something to see.
        """
        setting = replace(self, replicate=0, seeds=Seeds(0, 0, 0))
        if self.origin is not None:
            setting = replace(setting, origin="elsewhere", total_steps=0, protocol=Protocol(0))
        return setting.key

    @property
    def name(self) -> str:
        """Label, environment and number, for people."""
        return f"{self.label} · {self.environment.id} · seed {self.replicate}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()
