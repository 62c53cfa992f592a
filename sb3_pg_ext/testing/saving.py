"""Contract: nothing that was learned is lost by saving and loading, and training goes on as if nothing had happened."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import recursive_getattr

from sb3_pg_ext import registry
from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.construction import NOT_STORED, optimizers, proportional
from sb3_pg_ext.testing.environments import total_steps
from sb3_pg_ext.testing.measures import all_finite, differences, fingerprint, learned
from sb3_pg_ext.testing.prediction import batch


def generators(model: Any) -> Any:
    """The states of the generators that belong to the process, and that of the action space."""
    return (
        random.getstate(),
        np.random.get_state(),
        th.get_rng_state(),
        model.action_space.np_random.bit_generator.state,
    )


def set_generators(model: Any, states: Any) -> None:
    """Undo what has happened since :func:`generators`."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    th.set_rng_state(states[2])
    model.action_space.np_random.bit_generator.state = states[3]


def tensors(module: th.nn.Module) -> Iterator[th.Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


class Saving(Contract):
    """Model files."""

    def load(self, path: Any, env: Any = None, **kwargs: Any) -> Any:
        """``cls.load`` onto the CPU."""
        return self.spec.cls.load(path, env=env, **{"device": "cpu", **kwargs})  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("saved", "loaded"),
        [("model", "model"), ("model", "model.zip"), ("model.zip", "model"), ("a/b/model", "a/b/model")],
    )
    @pytest.mark.parametrize("path_type", [str, Path])
    @pytest.mark.filterwarnings("ignore:Path .* does not exist. Will create it")
    def test_file_may_be_named_with_and_without_suffix(
        self, tmp_path: Path, path_type: Any, saved: str, loaded: str
    ) -> None:
        model = self.make()
        model.save(path_type(tmp_path / saved))
        assert differences(learned(model), learned(self.load(path_type(tmp_path / loaded)))) == []

    def test_file_may_be_a_file_object(self) -> None:
        model, file = self.make(), io.BytesIO()
        model.save(file)
        assert not file.closed
        file.seek(0)
        assert differences(learned(model), learned(self.load(file))) == []
        assert not file.closed

    def test_everything_learned_is_kept(self, tmp_path: Path, action: Any) -> None:
        """Bit for bit, optimizers included; and so the same actions."""
        model = self.trained(self.env(action=action))
        model.save(tmp_path / "model")
        loaded = self.load(tmp_path / "model")
        assert differences(learned(model), learned(loaded)) == []
        obs = batch(model.observation_space, 10)
        expected, _ = model.predict(obs, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)

    def test_every_kind_of_policy_is_kept(self, tmp_path: Path, observation: Any) -> None:
        model = self.make(self.env(observation=observation))
        model.save(tmp_path / "model")
        loaded = self.load(tmp_path / "model")
        assert type(loaded.policy) is type(model.policy)
        assert loaded.observation_space == model.observation_space
        assert differences(learned(model), learned(loaded)) == []

    def test_arguments_and_counts_are_kept(self, tmp_path: Path) -> None:
        model = self.trained()
        model.save(tmp_path / "model")
        loaded = self.load(tmp_path / "model")
        names = [name for name in self.spec.defaults if name not in NOT_STORED]
        plain = {name: value for name in names if isinstance(value := getattr(model, name), (bool, int, float, str))}
        assert {name: getattr(loaded, name) for name in plain} == plain
        assert loaded.num_timesteps == model.num_timesteps
        assert loaded._n_updates == model._n_updates
        assert list(loaded.ep_info_buffer) == list(model.ep_info_buffer)

    def test_every_tensor_and_optimizer_is_in_the_file(self) -> None:
        """What ``_get_torch_save_params`` leaves out is silently set back by ``load``."""
        model = self.trained()
        names, variables = model._get_torch_save_params()
        saved = [recursive_getattr(model, name) for name in names]
        kept = {id(t) for part in saved if isinstance(part, th.nn.Module) for t in tensors(part)}
        kept |= {id(recursive_getattr(model, name)) for name in variables}
        modules = {name: value for name, value in vars(model).items() if isinstance(value, th.nn.Module)}
        assert [name for name, module in modules.items() if any(id(t) not in kept for t in tensors(module))] == []
        lost = [optimizer for optimizer in optimizers(model) if not any(optimizer is part for part in saved)]
        assert lost == []

    def test_training_goes_on_as_if_nothing_had_happened(self, tmp_path: Path, n_envs: int) -> None:
        """The saved and the loaded model, put before the same environments with the generators of the process in the
        same state, come out the same, bit for bit. What belongs to the algorithm must therefore be in the file.
        """
        model = self.trained(self.env(n_envs))
        self._save(model, tmp_path)
        states = generators(model)
        model.set_env(self.env(n_envs))
        expected = self._continued(model, states)
        assert self._continued(self._load(tmp_path, self.env(n_envs)), states) == expected

    def _save(self, model: Any, folder: Path) -> None:
        model.save(folder / "model")
        if hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer(folder / "replay")

    def _load(self, folder: Path, env: Any) -> Any:
        model = self.load(folder / "model", env)
        if hasattr(model, "load_replay_buffer"):
            model.load_replay_buffer(folder / "replay")
        return model

    def _continued(self, model: Any, states: Any) -> str:
        set_generators(model, states)
        model.get_env().seed(11)
        return fingerprint(self.learn(model, reset_num_timesteps=False))

    @needs("stops_at_step")
    def test_saving_does_not_disturb_training(self, tmp_path: Path) -> None:
        checkpoints = CheckpointCallback(save_freq=20, save_path=str(tmp_path))
        assert fingerprint(self.learn(self.make(), callback=checkpoints)) == fingerprint(self.trained())

    @needs("vectorised")
    def test_number_of_environments_may_change(self, tmp_path: Path) -> None:
        model = self.trained(self.env(1))
        model.save(tmp_path / "model")
        env = self.env(3)
        loaded = self.load(tmp_path / "model", env)
        self.learn(loaded, reset_num_timesteps=False)
        assert loaded.n_envs == 3
        assert loaded.num_timesteps == model.num_timesteps + total_steps(env)
        assert all_finite(loaded)

    def test_environment_may_be_given_later(self, tmp_path: Path) -> None:
        model = self.trained()
        model.save(tmp_path / "model")
        loaded = self.load(tmp_path / "model")
        assert loaded.get_env() is None
        loaded.set_env(self.env())
        self.learn(loaded, reset_num_timesteps=False)
        assert loaded.num_timesteps >= model.num_timesteps + self.steps

    def test_loading_into_other_spaces_is_refused(self, tmp_path: Path) -> None:
        self.make().save(tmp_path / "model")
        with pytest.raises(ValueError, match=r"[Oo]bservation space"):
            self.load(tmp_path / "model", self.env(observation="matrix"))

    def test_schedules_are_kept(self, tmp_path: Path) -> None:
        model = self.make(learning_rate=proportional)
        model.save(tmp_path / "model")
        loaded = self._load_trusted(tmp_path / "model")
        assert [loaded.lr_schedule(p) for p in (1.0, 0.5)] == [1e-2, 5e-3]

    def _load_trusted(self, path: Path) -> Any:
        """A function of one's own is nothing that a file may bring along unasked."""
        return self.load(path, trusted=True) if self.guards else self.load(path)

    def test_attributes_may_be_excluded_and_included(self, tmp_path: Path) -> None:
        model = self.make(verbose=2)
        default = self.spec.defaults["verbose"]
        for kwargs, verbose in (
            ({"exclude": ["verbose"]}, default),
            ({"exclude": ["verbose"], "include": ["verbose"]}, 2),
        ):
            model.save(tmp_path / "model", **kwargs)
            assert self.load(tmp_path / "model").verbose == verbose

    @pytest.mark.parametrize("way", ["kwargs", "custom_objects"])
    def test_arguments_may_be_replaced(self, tmp_path: Path, way: str) -> None:
        self.make().save(tmp_path / "model")
        new = {"learning_rate": 0.0123}
        loaded = self.load(tmp_path / "model", **(new if way == "kwargs" else {"custom_objects": new}))
        assert loaded.learning_rate == 0.0123

    @needs("guards")
    def test_mistyped_arguments_of_load_are_refused(self, tmp_path: Path) -> None:
        self.make().save(tmp_path / "model")
        for load in (self.load, registry.load) if self.key else (self.load,):
            with pytest.raises(TypeError, match=r"'learning_rat'.*'learning_rate'"):
                load(tmp_path / "model", learning_rat=1e-3)

    @needs("guards")
    def test_file_of_another_class_is_refused(self, tmp_path: Path) -> None:
        """Both are named, also if the file is trusted."""
        cls: Any = self.spec.cls
        reinforce = registry.get("reinforce").cls
        other: Any = registry.get("npg").cls if issubclass(cls, reinforce) else reinforce
        other("MlpPolicy", self.env(), device="cpu").save(tmp_path / "model")
        for trusted in (False, True):
            with pytest.raises(ValueError, match=rf"{other.__name__}.*{cls.__name__}.*{other.__name__}\.load"):
                cls.load(tmp_path / "model", trusted=trusted)

    @needs("guards")
    def test_subclasses_and_their_parents_load_each_others_files(self, tmp_path: Path) -> None:
        cls: Any = self.spec.cls
        child: Any = type("Child", (cls,), {})
        for saving, loading in ((cls, child), (child, cls), (child, child)):
            env = self.env()
            policy = registry.default_policy(self.spec, env.observation_space)
            model = saving(policy, env, **self.arguments(env.observation_space))
            model.save(tmp_path / "model")
            loaded = loading.load(tmp_path / "model", device="cpu")
            assert type(loaded) is loading
            assert differences(learned(model), learned(loaded)) == []

    def test_other_policy_kwargs_are_refused(self, tmp_path: Path) -> None:
        self.make().save(tmp_path / "model")
        with pytest.raises(ValueError, match=r"policy_kwargs|policy kwargs"):
            self.load(tmp_path / "model", policy_kwargs={"net_arch": [3]})

    def test_saving_and_loading_give_no_warning(self, tmp_path: Path) -> None:
        model = self.make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.save(tmp_path / "model")
            self.load(tmp_path / "model", self.env())

    def test_parameters_may_be_handed_over(self, tmp_path: Path) -> None:
        """As a dict and as a file."""
        model = self.trained()
        model.save(tmp_path / "model")
        for source in (model.get_parameters(), tmp_path / "model.zip"):
            other = self.make(seed=5)
            assert differences(learned(model), learned(other))
            other.set_parameters(source, exact_match=True, device="cpu")
            assert differences(learned(model), learned(other)) == []

    @pytest.mark.parametrize("exact_match", [False, True])
    def test_unknown_parameters_are_refused(self, exact_match: bool) -> None:
        model = self.make()
        with pytest.raises(ValueError, match="nonsense"):
            model.set_parameters({**model.get_parameters(), "nonsense": {}}, exact_match=exact_match)

    def test_missing_parameters_are_refused(self) -> None:
        model = self.make()
        first, *_ = parameters = model.get_parameters()
        parameters.pop(first)
        with pytest.raises(ValueError, match=first):
            model.set_parameters(parameters, exact_match=True)
        model.set_parameters(parameters, exact_match=False)

    @needs("key")
    def test_registry_finds_the_class_of_the_file(self, tmp_path: Path) -> None:
        model = self.make()
        model.save(tmp_path / "model")
        loaded = registry.load(tmp_path / "model", device="cpu")
        assert type(loaded) is self.spec.cls
        assert differences(learned(model), learned(loaded)) == []
