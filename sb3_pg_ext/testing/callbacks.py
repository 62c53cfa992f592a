"""Contract: callbacks are called at every env step, in order, and obeyed at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common import callbacks as stock

from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.environments import total_steps
from sb3_pg_ext.testing.measures import differences, learned
from sb3_pg_ext.testing.recorders import Events, Locals, StopAt


class CountingBar:
    """Stands in for the progress bar of tqdm."""

    last: CountingBar

    def __init__(self, total: int):
        self.total, self.n, self.closed = total, 0, False
        CountingBar.last = self

    def update(self, n: int) -> None:
        self.n += n

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Callbacks(Contract):
    """Callbacks."""

    @needs("stops_at_step")
    def test_one_call_for_every_step(self, n_envs: int) -> None:
        env, events = self.env(n_envs), Events()
        model = self.learn(self.make(env), callback=events)
        assert events.counts == list(range(n_envs, model.num_timesteps + 1, n_envs))
        assert events.n_calls * n_envs == model.num_timesteps == total_steps(env)

    def test_order_of_calls(self) -> None:
        events = Events()
        self.learn(self.make(), callback=events)
        assert re.fullmatch("T(Rs+r)+t", events.events), events.events

    @needs("stops_at_step")
    def test_order_of_calls_after_a_stop(self) -> None:
        events = StopAt(19)
        self.learn(self.make(), callback=events)
        assert re.fullmatch("T(Rs+r)*Rs+t", events.events), events.events

    @needs("stops_at_step")
    def test_locals_hold_the_step(self, n_envs: int) -> None:
        seen = Locals()
        model = self.learn(self.make(self.env(n_envs)), callback=seen)
        assert seen.steps
        for step in seen.steps:
            assert np.shape(step["new_obs"]) == (n_envs, *model.observation_space.shape)
            assert np.shape(step["rewards"]) == np.shape(step["dones"]) == (n_envs,)
            assert len(step["infos"]) == n_envs
        assert [bool(step["dones"][0]) for step in seen.steps[:16]] == 2 * [*[False] * 7, True]

    @pytest.mark.parametrize("call", [1, 13, 40])
    @pytest.mark.parametrize(
        "answer", [False, np.bool_(False), th.tensor(False), 0], ids=["False", "np.bool_", "tensor", "0"]
    )
    @needs("stops_at_step")
    def test_any_falsy_answer_stops_at_this_step(self, answer: Any, call: int) -> None:
        """Episodes are 8 steps long: the stop comes in the middle of one and at the end of one."""
        events = StopAt(call, answer)
        model = self.learn(self.make(), callback=events)
        assert (events.n_calls, model.num_timesteps, total_steps(model.get_env())) == (call, call, call)
        assert events.events.endswith("st")

    @needs("stops_at_step")
    def test_a_stop_in_the_first_rollout_learns_nothing(self) -> None:
        model = self.make()
        before = learned(model)
        self.learn(model, callback=StopAt(3))
        assert differences(before, learned(model)) == []

    @needs("stops_at_step")
    def test_training_goes_on_after_a_stop(self) -> None:
        model = self.learn(self.make(), callback=StopAt(13))
        before = learned(model)
        self.learn(model, reset_num_timesteps=False)
        assert 13 + self.steps <= model.num_timesteps == total_steps(model.get_env())
        assert differences(before, learned(model))
        assert {episode["l"] for episode in list(model.ep_info_buffer)[1:]} == {8}

    @needs("stops_at_step", "vectorised")
    def test_stops_after_so_many_episodes_in_two_environments(self) -> None:
        """Three episodes in each, of 8 steps."""
        model = self.make(self.env(2))
        self.learn(model, 1000, stock.StopTrainingOnMaxEpisodes(max_episodes=3))
        assert model.num_timesteps == 2 * 3 * 8

    @needs("stops_at_step")
    def test_list_and_function_serve_as_callback(self) -> None:
        first, second, callers = Events(), Events(), []

        def function(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
            callers.append(locals_["self"])
            return True

        self.learn(self.make(), callback=[first, second])
        assert first.events == second.events
        model = self.learn(self.make(), callback=function)
        assert callers == [model] * model.num_timesteps

    @needs("stops_at_step")
    def test_evaluation_callback(self, tmp_path: Path) -> None:
        evaluation = stock.EvalCallback(
            self.env(1), eval_freq=30, n_eval_episodes=2, log_path=str(tmp_path), best_model_save_path=str(tmp_path)
        )
        self.learn(self.make(self.env(1)), 90, evaluation)
        with np.load(tmp_path / "evaluations.npz") as saved:
            assert saved["timesteps"].tolist()[:3] == [30, 60, 90]
            assert saved["ep_lengths"].tolist()[:3] == [[8, 8]] * 3
            best = saved["results"].mean(1).max()
        model = self.spec.cls.load(tmp_path / "best_model.zip", device="cpu")  # type: ignore[attr-defined]
        assert evaluation.best_mean_reward == best
        assert model.num_timesteps in saved_at(evaluation)

    @needs("stops_at_step")
    def test_checkpoint_callback(self, tmp_path: Path) -> None:
        """Checkpoints are written in the midst of a rollout, and can be loaded."""
        self.learn(self.make(), 90, stock.CheckpointCallback(save_freq=20, save_path=str(tmp_path)))
        assert {f"rl_model_{n}_steps.zip" for n in (20, 40, 60, 80)} <= {path.name for path in tmp_path.iterdir()}
        model = self.spec.cls.load(tmp_path / "rl_model_40_steps.zip", self.env(), device="cpu")  # type: ignore[attr-defined]
        assert model.num_timesteps == 40
        self.learn(model, reset_num_timesteps=False)
        assert model.num_timesteps >= 40 + self.steps

    def test_an_error_of_a_callback_comes_through(self) -> None:
        def fail(*_: Any) -> bool:
            raise ZeroDivisionError("of the callback")

        with pytest.raises(ZeroDivisionError, match="of the callback"):
            self.learn(self.make(), callback=fail)

    @needs("stops_at_step")
    def test_progress_bar_counts_the_steps(self, monkeypatch: pytest.MonkeyPatch, n_envs: int) -> None:
        monkeypatch.setattr(stock, "tqdm", CountingBar)
        model = self.make(self.env(n_envs))
        for continued in (False, True):
            before = model.num_timesteps if continued else 0
            self.learn(model, progress_bar=True, reset_num_timesteps=not continued)
            bar = CountingBar.last
            assert (bar.total, bar.n, bar.closed) == (self.steps, model.num_timesteps - before, True)


def saved_at(evaluation: stock.EvalCallback) -> list[int]:
    """Steps at which an evaluation was as good as the best one."""
    means = [np.mean(results) for results in evaluation.evaluations_results]
    return [step for step, mean in zip(evaluation.evaluations_timesteps, means, strict=True) if mean == max(means)]
