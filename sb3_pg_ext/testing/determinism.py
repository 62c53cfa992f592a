"""Contract: one seed, one result, bit for bit."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch as th

from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.environments import EnvName
from sb3_pg_ext.testing.measures import fingerprint


def disturb_generators() -> None:
    """Leave the generators of python, numpy and torch in a state that nobody knows."""
    random.seed()
    np.random.seed()
    th.seed()


class Determinism(Contract):
    """Seeds."""

    def _result(self, seed: int = 3, n_envs: int = 1, kind: EnvName = "dummy", **kwargs: Any) -> str:
        disturb_generators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork() in a process with threads
            env = self.env(n_envs, kind, **kwargs)
        try:
            return fingerprint(self.trained(env, seed=seed))
        finally:
            env.close()

    def test_same_seed_gives_the_same_result(self, action: Any, n_envs: int) -> None:
        assert self._result(action=action, n_envs=n_envs) == self._result(action=action, n_envs=n_envs)

    def test_same_seed_gives_the_same_result_from_every_observation(self, observation: Any) -> None:
        assert self._result(observation=observation) == self._result(observation=observation)

    def test_another_seed_gives_another_result(self) -> None:
        assert self._result(seed=3) != self._result(seed=4)

    @needs("vectorised")
    def test_environments_in_processes_give_the_same_result(self) -> None:
        assert self._result(n_envs=2, kind="subproc") == self._result(n_envs=2)

    @needs("native", "vectorised")
    def test_native_environments_give_the_same_result(self) -> None:
        assert self._result(n_envs=2, kind="native") == self._result(n_envs=2)
