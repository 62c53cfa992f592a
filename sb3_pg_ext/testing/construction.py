"""Contract: what the constructor takes, stores and refuses."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_pg_ext.spec import ALL_ACTION_SPACES, constructor_parameters
from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.environments import ACTION_SPACES, OBSERVATION_SPACES
from sb3_pg_ext.testing.measures import all_finite, differences, learned

# What users, callbacks and the zoo hand to every class.
COMMON = {"learning_rate", "policy_kwargs", "stats_window_size", "tensorboard_log", "verbose", "seed", "device"}
# Stored by Stable-Baselines3 in another form.
NOT_STORED = {"stats_window_size", "device", "_init_setup_model", "monitor_wrapper", "use_rms_prop", "rms_prop_eps"}
# An argument that a class may have -> values that make no sense.
SENSELESS: dict[str, tuple[Any, ...]] = {
    "learning_rate": (float("nan"), float("inf"), -1e-3, "fast", None),
    "gamma": (2.0, -0.1, float("nan")),
    "gae_lambda": (1.5, float("nan")),
    "n_steps": (0, -1, 1.5),
    "batch_size": (0, -1),
    "buffer_size": (0,),
    "tau": (2.0, float("nan")),
    "ent_coef": (float("nan"),),
    "vf_coef": (float("nan"),),
    "max_grad_norm": (float("nan"), -1.0),
    "stats_window_size": (0,),
}


class StrangePolicy(BasePolicy):
    """A policy that belongs to no algorithm."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Any:
        raise NotImplementedError


class Construction(Contract):
    """The constructor."""

    def parameters(self) -> dict[str, list[Any]]:
        senseless = [(name, value) for name in SENSELESS for value in SENSELESS[name] if name in self.spec.defaults]
        return super().parameters() | {
            "policy_name": list(self.spec.policies),
            "flag": [name for name, p in self._parameters().items() if p.annotation in ("bool", bool)],
            "senseless": [pytest.param(case, id=f"{case[0]}={case[1]}") for case in senseless],
        }

    def _parameters(self) -> dict[str, inspect.Parameter]:
        return constructor_parameters(self.spec.cls)[0]

    def test_signature_is_that_of_stable_baselines3(self) -> None:
        parameters = inspect.signature(self.spec.cls).parameters
        assert list(parameters)[:2] == ["policy", "env"]
        assert self.spec.defaults.keys() >= COMMON
        assert "_init_setup_model" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def test_each_policy_name_is_built(self, policy_name: str) -> None:
        space = OBSERVATION_SPACES["image" if "Cnn" in policy_name else "dict" if "Multi" in policy_name else "vector"]
        model = self.make(self.env(observation=space), policy_name)
        assert type(model.policy) is self.spec.cls.policy_aliases[policy_name]  # type: ignore[attr-defined]

    def test_unknown_policy_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NoSuchPolicy"):
            self.make(policy="NoSuchPolicy")

    @needs("guards")
    def test_error_for_a_policy_name_lists_those_that_there_are(self) -> None:
        known = self.spec.policies[0]
        mistyped = known.replace("Policy", "Polciy")
        with pytest.raises(ValueError, match=mistyped) as error:
            self.make(policy=mistyped)
        assert [
            name for name in (f"mean {known!r}", *map(repr, self.spec.policies)) if name not in str(error.value)
        ] == []

    @needs("guards")
    def test_policy_for_other_observations_is_refused(self, policy_name: str) -> None:
        space = OBSERVATION_SPACES["vector" if policy_name.startswith(("MultiInput", "Cnn")) else "dict"]
        with pytest.raises(ValueError, match=policy_name):
            self.make(self.env(observation=space), policy_name)

    @pytest.mark.parametrize("policy", [None, 5, object, StrangePolicy], ids=str)
    @needs("guards")
    def test_what_is_no_policy_of_this_family_is_refused(self, policy: Any) -> None:
        env = self.env()
        with pytest.raises((TypeError, ValueError), match=rf"policy=\S*{getattr(policy, '__name__', policy)}.*Policy"):
            self.spec.cls(policy, env, **self.arguments(env.observation_space))

    @needs("guards")
    def test_what_is_neither_true_nor_false_is_refused(self, flag: str) -> None:
        with pytest.raises((TypeError, ValueError), match=f"{flag}='no'"):
            self.make(**{flag: "no"})

    def test_policy_may_be_a_class(self) -> None:
        cls = self.spec.cls.policy_aliases[self.spec.policies[0]]  # type: ignore[attr-defined]
        assert issubclass(cls, BasePolicy)
        assert type(self.make(policy=cls).policy) is cls

    def test_every_argument_is_stored_under_its_name(self) -> None:
        """``load(..., name=value)`` and ``custom_objects`` replace attributes by these names."""
        model = self.make()
        assert [name for name in self.spec.defaults if name not in NOT_STORED and not hasattr(model, name)] == []

    def test_nothing_is_built_without_init_setup_model(self) -> None:
        """``load`` relies on it: the networks come from ``_setup_model``, when the saved attributes are in place."""
        model = self.spec.cls(self.spec.policies[0], None, _init_setup_model=False)
        assert getattr(model, "policy", None) is None
        model = self.make(_init_setup_model=False)
        assert getattr(model, "policy", None) is None
        model._setup_model()
        assert isinstance(model.policy, BasePolicy)

    def test_environment_may_be_an_id(self) -> None:
        env_id = "Pendulum-v1" if "Box" in self.spec.action_spaces else "CartPole-v1"
        model = self.spec.cls(self.spec.policies[0], env_id, **self.arguments(OBSERVATION_SPACES["vector"]))
        assert model.get_env().num_envs == 1

    def test_construction_gives_no_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.make()

    def test_supported_action_spaces_are_accepted(self, action: Any) -> None:
        assert self.make(self.env(action=action)).action_space == ACTION_SPACES[action]

    def test_other_action_spaces_are_refused_with_the_supported_ones_named(self, unsupported_action: Any) -> None:
        self._refuses_action_space(ACTION_SPACES[unsupported_action])

    @pytest.mark.parametrize(
        "space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Tuple([spaces.Discrete(2)])], ids=["Dict", "Tuple"]
    )
    def test_composed_action_spaces_are_refused_with_the_supported_ones_named(self, space: Any) -> None:
        self._refuses_action_space(space)

    def _refuses_action_space(self, space: spaces.Space[Any]) -> None:
        with pytest.raises((AssertionError, ValueError, TypeError)) as error:
            self.make(self.env(action=space))
        message = str(error.value)
        # "Discrete" in "MultiDiscrete" must not count.
        named = [name for name in ALL_ACTION_SPACES if re.search(rf"(?<![A-Za-z]){name}(?![A-Za-z])", message)]
        assert set(named) >= {*self.spec.action_spaces}, message

    def test_unknown_argument_is_refused_by_name(self) -> None:
        with pytest.raises(TypeError, match="learning_rat"):
            self.make(learning_rat=1e-3)

    @needs("guards")
    def test_the_nearest_argument_is_suggested(self) -> None:
        with pytest.raises(TypeError, match=r"'learning_rat'.*'learning_rate'"):
            self.make(learning_rat=1e-3)

    @needs("guards")
    def test_senseless_argument_is_refused_by_name(self, senseless: tuple[str, Any]) -> None:
        name, value = senseless
        with pytest.raises((ValueError, TypeError), match=name) as error:
            self.make(**{name: value})
        assert str(value) in str(error.value)

    def test_several_environments(self, n_envs: int) -> None:
        assert self.make(self.env(n_envs)).n_envs == n_envs

    def test_policy_kwargs_reach_the_policy(self) -> None:
        if "net_arch" not in self.policy_kwargs:
            pytest.skip("the policy has no net_arch")
        asked = {"net_arch": [7], "activation_fn": th.nn.ELU}
        model = self.make(policy_kwargs=dict(asked))
        modules = list(model.policy.modules())
        assert any(isinstance(m, th.nn.ELU) for m in modules)
        assert any(isinstance(m, th.nn.Linear) and m.out_features == 7 for m in modules)

    def test_optimizer_may_be_chosen(self) -> None:
        if not self._has_optimizer():
            pytest.skip("the policy has no optimizer")
        model = self.make(policy_kwargs={**self.policy_kwargs, "optimizer_class": th.optim.SGD})
        assert any(type(o) is th.optim.SGD for o in optimizers(model))
        self.learn(model)
        assert all_finite(model)

    def _has_optimizer(self) -> bool:
        return bool(optimizers(self.make()))

    def test_policy_kwargs_serve_twice(self) -> None:
        """Stable-Baselines3 writes into the caller's dict; the second model must come out as the first."""
        kwargs = dict(self.policy_kwargs)
        first, second = self.make(policy_kwargs=kwargs), self.make(policy_kwargs=kwargs)
        assert differences(learned(first), learned(second)) == []

    def test_learning_rate_may_be_a_schedule(self) -> None:
        model = self.make(learning_rate=proportional)
        assert (model.lr_schedule(1.0), model.lr_schedule(0.5)) == (1e-2, 5e-3)
        assert type(model.lr_schedule(1.0)) is float


def proportional(progress: float) -> float:
    """A learning rate that falls in proportion to the remaining progress."""
    return 1e-2 * progress


def optimizers(model: Any) -> list[th.optim.Optimizer]:
    """Every optimizer that an attribute of the model, or of one of its modules, refers to."""
    modules = [m for value in vars(model).values() if isinstance(value, th.nn.Module) for m in value.modules()]
    found = [value for owner in (model, *modules) for value in vars(owner).values()]
    return list({id(o): o for o in found if isinstance(o, th.optim.Optimizer)}.values())
