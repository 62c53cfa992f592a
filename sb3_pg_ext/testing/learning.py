"""Contract: ``learn`` on every space, counted exactly, continued, and with bounded consequences."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.construction import optimizers, proportional
from sb3_pg_ext.testing.environments import total_steps
from sb3_pg_ext.testing.measures import all_finite, differences, learned, weights
from sb3_pg_ext.testing.recorders import Start, log_to_table


class BatchNormExtractor(BaseFeaturesExtractor):
    """Batch normalisation of a vector: its running statistics tell in which mode it was called."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        self.norm = th.nn.Sequential(th.nn.Flatten(), th.nn.BatchNorm1d(self.features_dim))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(observations)


class Learning(Contract):
    """Training.

    :cvar solves: if given, so many env steps must be enough for 0.85 of the best return in an Echo with the first of
        the action spaces; with Box actions that do not depend on the observation 0.75 can be had
    :cvar solver: the constructor arguments for this
    """

    solves: ClassVar[int | None] = None
    solver: ClassVar[dict[str, Any]] = {"learning_rate": 1e-2, "gamma": 0.0}

    def test_learns_on_every_action_space(self, action: Any) -> None:
        self._changes_and_stays_finite(self.make(self.env(action=action)))

    def test_learns_from_every_observation(self, observation: Any) -> None:
        self._changes_and_stays_finite(self.make(self.env(observation=observation)))

    def test_learns_in_several_environments(self, n_envs: int) -> None:
        env = self.env(n_envs)
        model = self.make(env)
        self._changes_and_stays_finite(model)
        assert model.num_timesteps % n_envs == 0
        assert model.num_timesteps == total_steps(env)

    def _changes_and_stays_finite(self, model: Any) -> None:
        before = weights(model)
        assert self.learn(model) is model
        assert model.num_timesteps >= self.steps
        assert differences(before, weights(model)), "no parameter has changed"
        assert all_finite(model)

    @needs("solves")
    def test_learns_what_can_be_learned(self) -> None:
        env = self.env(4 if self.vectorised else 1)
        model = self.learn(self.make(env, **self.solver), self.solves)
        mean, _ = evaluate_policy(model, env, n_eval_episodes=40)
        assert float(mean) >= 0.85 * 8  # type: ignore[arg-type]

    def test_second_call_starts_where_the_first_ended(self) -> None:
        model, start = self.trained(), Start()
        after_one, steps, resets = learned(model), model.num_timesteps, self._episodes(model)
        self.learn(model, callback=start, reset_num_timesteps=False)
        assert differences(after_one, start.learned) == [], "the second call began by changing what was learned"
        assert steps + self.steps <= model.num_timesteps == total_steps(model.get_env())
        assert model._num_timesteps_at_start == steps
        assert self._episodes(model) > resets

    def _episodes(self, model: Any) -> int:
        return sum(model.get_env().get_attr("episodes"))

    def test_count_begins_anew_by_default_but_learning_does_not(self) -> None:
        model, start = self.trained(), Start()
        after_one, steps = learned(model), model.num_timesteps
        self.learn(model, callback=start)
        assert differences(after_one, start.learned) == []
        assert model.num_timesteps == total_steps(model.get_env()) - steps

    def test_zero_steps_change_nothing(self) -> None:
        model = self.make()
        before = learned(model)
        self.learn(model, 0)
        assert model.num_timesteps == 0
        assert differences(before, learned(model)) == []

    @pytest.mark.parametrize("total", [-5, float("nan"), float("inf"), "many"])
    @needs("guards")
    def test_senseless_total_is_refused_by_name(self, total: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=f"total_timesteps.*{total}"):
            self.learn(self.make(), total)

    def test_log_interval_may_be_none(self) -> None:
        """Then nothing is dumped of itself."""
        model = self.make()
        table = log_to_table(model)
        self.learn(model, log_interval=None)
        assert table.rows == []

    def test_learning_rates_follow_their_schedules(self) -> None:
        model = self.make(**{name: proportional for name in self.spec.defaults if name.endswith("learning_rate")})
        table = log_to_table(model)
        self.learn(model, log_interval=1)
        rates = table.column("train/learning_rate")
        assert len(rates) > 1
        assert (np.diff(rates) <= 0).all()
        assert 0 <= rates[-1] < rates[0] <= 1e-2
        groups = [group for optimizer in optimizers(model) for group in optimizer.param_groups]
        assert all(group["lr"] <= rates[-1] for group in groups), "an optimizer does not follow the schedule"

    @pytest.mark.parametrize("scale", [1e-8, 1e8, -1e8])
    def test_rewards_may_be_of_any_scale(self, scale: float) -> None:
        model = self.trained(self.env(scale=scale))
        assert all_finite(model)

    @pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
    def test_rewards_may_be_constant(self, reward: float) -> None:
        assert all_finite(self.trained(self.env(reward=reward)))

    @pytest.mark.parametrize("truncates", [False, True])
    def test_episodes_may_be_one_step_long(self, truncates: bool) -> None:
        model = self.trained(self.env(length=1, truncates=truncates))
        assert model.num_timesteps >= self.steps
        assert all_finite(model)
        assert {episode["l"] for episode in model.ep_info_buffer} == {1}

    def test_episodes_may_be_cut_by_a_time_limit(self) -> None:
        assert all_finite(self.trained(self.env(truncates=True)))

    def test_acting_leaves_running_statistics_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only ``train`` may run modules in training mode; collection and ``predict`` may not."""
        if not hasattr(self.spec.cls, "train") or not self._takes_extractor():
            pytest.skip("no train(), or no features extractor")
        model = self._with_batch_norm()
        monkeypatch.setattr(model, "train", lambda *_, **__: None)
        before = self._statistics(model)
        self.learn(model)
        model.predict(model.observation_space.sample())
        assert differences(before, self._statistics(model)) == []

    def test_training_moves_running_statistics(self) -> None:
        if not hasattr(self.spec.cls, "train") or not self._takes_extractor():
            pytest.skip("no train(), or no features extractor")
        model = self._with_batch_norm()
        before = self._statistics(model)
        self.learn(model)
        assert differences(before, self._statistics(model))

    def _takes_extractor(self) -> bool:
        return "net_arch" in self.policy_kwargs

    def _with_batch_norm(self) -> Any:
        return self.make(policy_kwargs={**self.policy_kwargs, "features_extractor_class": BatchNormExtractor})

    def _statistics(self, model: Any) -> dict[str, Any]:
        return {name: value for name, value in weights(model).items() if "running_" in name}
