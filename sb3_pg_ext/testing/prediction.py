"""Contract: ``predict`` answers in the action space's own shape, type and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg_ext.testing.base import Contract
from sb3_pg_ext.testing.environments import ACTION_SPACES, OBSERVATION_SPACES
from sb3_pg_ext.testing.measures import differences, learned


def batch(space: spaces.Space[Any], n: int) -> Any:
    """``n`` samples of a space, one array (n, ...) or a dict of such."""
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {name: np.stack([sample[name] for sample in samples]) for name in space}
    return np.stack(samples)


class Prediction(Contract):
    """``predict``."""

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_actions_lie_in_the_action_space(self, action: Any, deterministic: bool) -> None:
        """Even those of a policy whose parameters are large."""
        model = self.make(self.env(action=action))
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.mul_(20)
        space = ACTION_SPACES[action]
        for _ in range(20):
            answer, _ = model.predict(model.observation_space.sample(), deterministic=deterministic)
            assert space.contains(answer), f"{answer!r} is not in {space}"

    def test_one_observation_gives_one_action(self, action: Any) -> None:
        model = self.make(self.env(action=action))
        answer, state = model.predict(model.observation_space.sample())
        assert np.shape(answer) == ACTION_SPACES[action].shape
        assert answer.dtype == ACTION_SPACES[action].dtype or action == "MultiBinary"  # which SB3 answers in float32
        assert state is None or "recurrent" in self.spec.tags

    def test_a_batch_gives_a_batch(self, action: Any) -> None:
        model = self.make(self.env(action=action))
        for n in (1, 5):
            answer, _ = model.predict(batch(model.observation_space, n))
            assert answer.shape == (n, *model.action_space.shape)
            assert all(ACTION_SPACES[action].contains(each) for each in answer)

    def test_actions_may_be_float64(self) -> None:
        if "Box" not in self.spec.action_spaces:
            pytest.skip("no Box actions")
        space = spaces.Box(-1, 1, (2,), np.float64)
        answer, _ = self.trained(self.env(action=space)).predict(np.zeros(3, np.float32))
        assert answer.dtype == np.float64
        assert space.contains(answer)

    def test_every_observation_is_understood(self, observation: Any) -> None:
        """Images as the environment gives them, channel last, as well."""
        model, space = self.make(self.env(observation=observation)), OBSERVATION_SPACES[observation]
        answer, _ = model.predict(space.sample())
        assert answer.shape == model.action_space.shape
        answers, _ = model.predict(batch(space, 3))
        assert answers.shape == (3, *model.action_space.shape)

    def test_a_batch_is_answered_one_by_one(self, observation: Any) -> None:
        model, space = self.make(self.env(observation=observation)), OBSERVATION_SPACES[observation]
        samples = batch(space, 4)
        together, _ = model.predict(samples, deterministic=True)
        for i, expected in enumerate(together):
            one = {name: part[i] for name, part in samples.items()} if isinstance(samples, dict) else samples[i]
            np.testing.assert_allclose(model.predict(one, deterministic=True)[0], expected, rtol=1e-4, atol=1e-5)

    def test_deterministic_answers_agree(self, action: Any) -> None:
        model = self.make(self.env(action=action))
        obs = model.observation_space.sample()
        answers = [model.predict(obs, deterministic=True)[0] for _ in range(5)]
        assert all(np.array_equal(answers[0], other) for other in answers)

    def test_predicting_changes_nothing_that_was_learned(self) -> None:
        model = self.make()
        before = learned(model)
        model.predict(batch(model.observation_space, 3))
        assert differences(before, learned(model)) == []

    def test_observation_of_another_shape_is_refused(self) -> None:
        model = self.make()
        with pytest.raises(ValueError, match=r"[Ss]hape"):
            model.predict(np.zeros(7, np.float32))

    def test_model_and_policy_can_be_evaluated(self) -> None:
        env = self.env(2 if self.vectorised else 1, reward=1.0)
        model = self.make(env)
        for player in (model, model.policy):
            returns, lengths = evaluate_policy(player, env, n_eval_episodes=4, return_episode_rewards=True)
            assert (returns, lengths) == ([8.0] * 4, [8] * 4)

    def test_policy_is_saved_and_loaded_by_itself(self, tmp_path: Path) -> None:
        model = self.make()
        model.policy.save(tmp_path / "policy")
        loaded = type(model.policy).load(tmp_path / "policy", device="cpu")
        obs = batch(model.observation_space, 5)
        expected, _ = model.policy.predict(obs, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
