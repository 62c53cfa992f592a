"""Contract: the search space and the shipped settings fit the constructor."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from sb3_pg_ext.experiments.building import check
from sb3_pg_ext.experiments.run_spec import Protocol
from sb3_pg_ext.experiments.seeds import seeds_for
from sb3_pg_ext.experiments.settings import ENVIRONMENT_KEYS, resolve
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.experiments.zoo_configs import configured_environments, zoo_config
from sb3_pg_ext.spec import space_from_json, space_to_json, suggest
from sb3_pg_ext.testing.base import Contract


class Tuning(Contract):
    """Search space and ``<key>.yml``."""

    def parameters(self) -> dict[str, list[Any]]:
        environments = configured_environments(self.key, self.configs) if self.key else []
        return super().parameters() | {"configured": environments}

    def test_search_space_is_plain_data(self) -> None:
        assert space_from_json(space_to_json(self.spec.space)) == dict(self.spec.space)

    @pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # of PPO, about odd sizes
    def test_every_sample_of_the_search_space_builds_a_model(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(5):
            sampled = suggest(self.spec.space, study.ask())
            policy_kwargs = {**self.policy_kwargs, **sampled.pop("policy_kwargs", {})}
            model = self.make(policy_kwargs=policy_kwargs, **sampled)
            assert {name: model.policy_kwargs[name] for name in policy_kwargs} == policy_kwargs
            assert sampled.keys() <= self.spec.defaults.keys()

    def test_settings_differ_from_the_defaults(self, configured: str) -> None:
        """A default is written once, in the signature."""
        settings = zoo_config(str(self.key), configured, self.configs)
        repeated = [
            name for name in settings if name in self.spec.defaults and same(self.spec.defaults[name], settings[name])
        ]
        assert repeated == []
        assert settings.keys() <= {*self.spec.defaults, *ENVIRONMENT_KEYS, "policy", "noise_type", "noise_std"}

    def test_settings_build_a_model(self, configured: str) -> None:
        try:
            gym.make(configured).close()
        except (gym.error.Error, ImportError) as error:
            pytest.skip(f"{configured} cannot be made here: {error}")
        settings = zoo_config(str(self.key), configured, self.configs)
        variant = Variant(str(self.key), str(self.key), settings)
        protocol = Protocol(every=1)
        check(resolve(variant, configured, seeds=seeds_for(0), total_steps=1, protocol=protocol, use_zoo_config=False))


def same(default: Any, value: Any) -> bool:
    """Whether a setting only repeats the default; True is not 1."""
    return isinstance(default, bool) == isinstance(value, bool) and bool(default == value)
