"""Contract: what is logged, at which step, and where tensorboard finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sb3_pg_ext.testing.base import Contract
from sb3_pg_ext.testing.recorders import log_to_table


class Logging(Contract):
    """The log."""

    def test_required_keys_are_logged(self) -> None:
        table = self._table(self.make())
        missing = self.logged - {name for row in table.rows for name in row}
        assert not missing

    def _table(self, model: Any, steps: int = 160, **kwargs: Any) -> Any:
        table = log_to_table(model)
        self.learn(model, steps, **{"log_interval": 1, **kwargs})
        assert table.rows
        return table

    def test_each_row_stands_at_its_step(self) -> None:
        model = self.make()
        table = self._table(model)
        assert [row["step"] for row in table.rows] == table.column("time/total_timesteps").tolist()
        steps = table.column("time/total_timesteps")
        assert (steps[1:] > steps[:-1]).all()
        assert steps[0] > 0
        assert steps[-1] <= model.num_timesteps

    def test_updates_are_counted(self) -> None:
        if "train/n_updates" not in self.logged:
            pytest.skip("train/n_updates is not logged")
        updates = self._table(self.make()).column("train/n_updates")
        assert (updates[1:] > updates[:-1]).all()
        assert updates[0] > 0

    def test_statistics_of_episodes_are_right(self) -> None:
        """Eight steps of reward 2; the first, third, ... episode is a success."""
        row = self._table(self.make(self.env(reward=2.0))).rows[-1]
        assert (row["rollout/ep_rew_mean"], row["rollout/ep_len_mean"]) == (16, 8)
        if "rollout/success_rate" in self.logged:
            assert row["rollout/success_rate"] == pytest.approx(0.5, abs=0.1)

    def test_statistics_are_over_a_window(self) -> None:
        model = self.make(stats_window_size=3)
        self._table(model)
        assert model.ep_info_buffer.maxlen == 3
        if "rollout/success_rate" in self.logged:
            assert len(model.ep_success_buffer) == model.ep_success_buffer.maxlen == 3

    def test_speed_counts_the_steps_of_this_call_only(self) -> None:
        model = self.make()
        self._table(model)
        model.num_timesteps = 10**9
        table = self._table(model, reset_num_timesteps=False)
        assert (table.column("time/fps") < 10**7).all()

    def test_logger_survives_a_second_call(self) -> None:
        model = self.make()
        table = self._table(model)
        rows = len(table.rows)
        self.learn(model, log_interval=1, reset_num_timesteps=False)
        assert len(table.rows) > rows

    def test_nothing_is_printed_by_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.learn(self.make(), log_interval=1)
        assert capsys.readouterr().out == ""

    def test_verbose_prints_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.learn(self.make(verbose=1), log_interval=1)
        assert "total_timesteps" in capsys.readouterr().out

    def test_tensorboard_runs_are_named_after_the_class(self, tmp_path: Path) -> None:
        """A continued run goes on in its folder, a new one takes the next number."""
        name = self.spec.cls.__name__
        model = self._with_tensorboard(tmp_path)
        self.learn(model, log_interval=1)
        self.learn(model, log_interval=1, reset_num_timesteps=False)
        assert [path.name for path in tmp_path.iterdir()] == [f"{name}_1"]
        self.learn(model, log_interval=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}_1", f"{name}_2"]
        assert list((tmp_path / f"{name}_2").glob("events.out.tfevents.*"))

    def test_tensorboard_runs_may_be_named(self, tmp_path: Path) -> None:
        self.learn(self._with_tensorboard(tmp_path), tb_log_name="mine")
        assert [path.name for path in tmp_path.iterdir()] == ["mine_1"]

    def _with_tensorboard(self, folder: Path) -> Any:
        pytest.importorskip("tensorboard")
        return self.make(tensorboard_log=str(folder))
