"""What all parts of the contract share: which algorithm is tested, how it is made small, which switches it has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import gymnasium as gym
import pytest
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_pg_ext import registry
from sb3_pg_ext.spec import ALL_ACTION_SPACES, ActionSpaceName, AlgorithmSpec
from sb3_pg_ext.testing.environments import Echo, EnvName, ObservationName, several

Test = TypeVar("Test", bound=Callable[..., None])

#: Arguments that make the algorithms of a family quick, as far as a constructor has them.
QUICK: dict[str, dict[str, Any]] = {
    "on_policy": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
    "off_policy": {"buffer_size": 500, "learning_starts": 8, "batch_size": 8},
    "policy_search": {"n_delta": 2, "population_size": 4},
    "model_based": {
        "n_steps": 16,
        "buffer_size": 500,
        "batch_size": 8,
        "gradient_steps": 2,
        "horizon": 3,
        "model_epochs": 2,
        "model_net_arch": [8],
    },
}


def needs(*promises: str) -> Callable[[Test], Test]:
    """The test is left out of a class in which one of these attributes is false or None."""

    def marked(test: Test) -> Test:
        test.promises = promises  # type: ignore[attr-defined]
        return test

    return marked


class Contract:
    """The base of every part of the contract. A subclass says what to test:

    :cvar key: key in the registry; or leave it out and give ``spec``
    :cvar spec: the record of the algorithm
    :cvar fast: constructor arguments that make it quick, beside those of :data:`QUICK`
    :cvar policy_kwargs: arguments of a small policy; a LinearPolicy has none
    :cvar learn_kwargs: further arguments of ``learn``
    :cvar steps: env steps of one training; at least two updates must fit in
    :cvar logged: keys that must stand in the log

    Its switches turn off what a class does not promise. Stable-Baselines3's own classes need the first two:

    :cvar guards: numbers that are not finite, wrong shapes and wrong arguments are errors that name the culprit
    :cvar native: a gymnasium ``VectorEnv`` is accepted as ``env``
    :cvar stops_at_step: callbacks are called after every env step and obeyed at once
    :cvar vectorised: several environments are accepted
    """

    key: ClassVar[str | None] = None
    spec: ClassVar[AlgorithmSpec]
    fast: ClassVar[dict[str, Any]] = {}
    policy_kwargs: ClassVar[dict[str, Any]] = {"net_arch": [8]}
    learn_kwargs: ClassVar[dict[str, Any]] = {}
    steps: ClassVar[int] = 96
    logged: ClassVar[frozenset[str]] = frozenset(
        {
            "time/fps",
            "time/time_elapsed",
            "time/total_timesteps",
            "rollout/ep_rew_mean",
            "rollout/ep_len_mean",
            "rollout/success_rate",
            "train/learning_rate",
            "train/n_updates",
        }
    )
    #: Folder with ``<key>.yml``; None looks where those of this package are.
    configs: ClassVar[Path | None] = None
    guards: ClassVar[bool] = True
    native: ClassVar[bool] = True
    stops_at_step: ClassVar[bool] = True
    vectorised: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "key" in vars(cls) and "spec" not in vars(cls) and cls.key is not None:
            cls.spec = registry.get(cls.key)
        if hasattr(cls, "spec") and cls.policy_kwargs is Contract.policy_kwargs:
            cls.policy_kwargs = {} if cls.spec.policies[0] == "LinearPolicy" else cls.policy_kwargs
        for name in dir(cls) if hasattr(cls, "spec") else ():
            promises = getattr(getattr(cls, name), "promises", ())
            if not all(getattr(cls, promise) for promise in promises):
                setattr(cls, name, None)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every test that asks for one of these names, without values of its own, runs once with each of ours."""
        own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
        for name, values in self.parameters().items():
            if name in metafunc.fixturenames and name not in own:
                metafunc.parametrize(name, values)

    def parameters(self) -> dict[str, list[Any]]:
        """Name of a test's argument -> its values, as the SPEC has them."""
        return {
            "action": list(self.spec.action_spaces),
            "unsupported_action": [name for name in ALL_ACTION_SPACES if name not in self.spec.action_spaces],
            "observation": self.observations(),
            "n_envs": [1, 3] if self.vectorised else [1],
            "kind": ["dummy", "native"] if self.native else ["dummy"],
        }

    def observations(self) -> list[ObservationName]:
        """Images and Dicts only if there is a policy for them."""
        prefixes = {"image": "Cnn", "dict": "MultiInput"}
        return [
            name
            for name in get_args(ObservationName)
            if any(policy.startswith(prefixes.get(name, "")) for policy in self.spec.policies)
        ]

    def env(
        self,
        n_envs: int | None = None,
        kind: EnvName = "dummy",
        *,
        action: ActionSpaceName | spaces.Space[Any] | None = None,
        observation: ObservationName | spaces.Space[Any] = "vector",
        **kwargs: Any,
    ) -> Any:
        """An :class:`~sb3_pg_ext.testing.environments.Echo`, or a vectorised one if ``n_envs`` is given.

        :param kwargs: ``length``, ``reward``, ... of the ``Echo``
        """
        make = partial(Echo, self.spec.action_spaces[0] if action is None else action, observation, **kwargs)
        return make() if n_envs is None else several(make, n_envs, kind)

    def arguments(self, observation_space: spaces.Space[Any], **kwargs: Any) -> dict[str, Any]:
        """Constructor arguments of a quick model; ``kwargs`` go before."""
        quick = {name: value for name, value in QUICK[self.spec.family].items() if name in self.spec.defaults}
        common = {"seed": 0, "device": "cpu", "policy_kwargs": self.small_policy(observation_space)}
        return {**common, **quick, **self.fast, **kwargs}

    def small_policy(self, observation_space: spaces.Space[Any]) -> dict[str, Any]:
        """``policy_kwargs`` of a small policy for these observations."""
        extractor = {"features_extractor_kwargs": {"features_dim": 8}} if is_image_space(observation_space) else {}
        return {**self.policy_kwargs, **extractor}

    def make(self, env: Any = None, policy: Any = None, **kwargs: Any) -> Any:
        """A small and quick model.

        :param env: a gymnasium env, VecEnv or VectorEnv; by default an ``Echo``
        :param policy: by default the one that is meant for the observations
        :param kwargs: constructor arguments
        """
        env = self.env() if env is None else env
        space = env.observation_space if isinstance(env, gym.Env) else observation_space_of(env)
        chosen = policy or registry.default_policy(self.spec, space)
        return self.spec.cls(chosen, env, **self.arguments(space, **kwargs))

    def learn(self, model: Any, steps: int | None = None, callback: Any = None, **kwargs: Any) -> Any:
        """``model.learn`` with ``learn_kwargs``, over ``self.steps`` by default."""
        total = self.steps if steps is None else steps
        return model.learn(total, callback, **{**self.learn_kwargs, **kwargs})

    def trained(self, env: Any = None, **kwargs: Any) -> Any:
        """:meth:`make` and :meth:`learn`."""
        return self.learn(self.make(env, **kwargs))


def observation_space_of(env: Any) -> spaces.Space[Any]:
    """One slot's observation space of a ``VecEnv`` or of a gymnasium ``VectorEnv``."""
    return getattr(env, "single_observation_space", None) or env.observation_space
