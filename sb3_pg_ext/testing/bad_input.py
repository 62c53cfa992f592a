"""Contract: what is wrong is named before anything is spoiled, and training can go on with what is right."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pytest
from gymnasium import spaces

from sb3_pg_ext.rollout import collector
from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.environments import RESET_FAULTS, Echo, EnvName, Fault, Faulty, encode, several
from sb3_pg_ext.testing.measures import all_finite, differences, learned
from sb3_pg_ext.testing.recorders import StopAt

#: Fault -> what the message must say.
NAMED: dict[Fault, str] = {
    "nan reward": r"reward.*\bnan",
    "inf reward": r"reward.*\binf",
    "-inf reward": r"reward.*-inf",
    "nan observation": r"observation.*\bnan",
    "inf observation": r"observation.*\binf",
    "short observation": r"observation.*\(2,\)",
    "broadcast observation": r"observation.*\(1,\)",
    "vector reward": r"reward.*\[",
    "no reward": r"reward.*None",
    "error": "the motor is stuck",
}
NOT_FINITE: tuple[Fault, ...] = tuple(fault for fault in get_args(Fault) if re.match("-?inf|nan", fault))
#: Spaces at the edge of what gymnasium allows: which one, and what it is.
ODD_SPACES: dict[str, tuple[Literal["observation", "action"], spaces.Space[Any]]] = {
    "scalar observation": ("observation", spaces.Box(-1, 1, ())),
    "scalar action": ("action", spaces.Box(-1, 1, ())),
    "action with a constant entry": ("action", spaces.Box(np.array([-1, 2], np.float32), np.array([1, 2], np.float32))),
    "observation with a matrix of choices": ("observation", spaces.MultiDiscrete(np.array([[3, 2], [2, 4]]))),
    "action with a matrix of choices": ("action", spaces.MultiDiscrete(np.array([[3, 2], [2, 4]]))),
    "observation with a matrix of bits": ("observation", spaces.MultiBinary([2, 2])),
    "action with a matrix of bits": ("action", spaces.MultiBinary([2, 2])),
}


class BadInput(Contract):
    """Environments and numbers that are broken."""

    def _refused(self, model: Any, fault: Fault, *more: str, named: str | None = None) -> None:
        """The error, or a note to it, says what is wrong, nothing that was learned is spoiled, and with a healthy
        environment training goes on.
        """
        with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
            self.learn(model)
        message = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
        for pattern in (named or NAMED[fault], *more):
            assert re.search(pattern, message, re.DOTALL), message
        assert all_finite(model)
        model.set_env(self.env(model.n_envs))
        self.learn(model, reset_num_timesteps=False)
        assert all_finite(model)

    def _faulty(self, fault: Fault, **kwargs: Any) -> Faulty:
        return Faulty(self.env(), fault, **kwargs)

    @pytest.mark.parametrize("when", [5, 60], ids=["before-the-first-update", "after-some-updates"])
    @pytest.mark.parametrize("fault", get_args(Fault))
    @needs("guards")
    def test_fault_in_a_step_is_named(self, fault: Fault, when: int) -> None:
        self._refused(self.make(self._faulty(fault, when=when)), fault)

    @pytest.mark.parametrize("when", [1, 3], ids=["first", "third"])
    @pytest.mark.parametrize("fault", RESET_FAULTS)
    @needs("guards")
    def test_fault_in_a_reset_is_named(self, fault: Fault, when: int) -> None:
        self._refused(self.make(self._faulty(fault, when=when, call="reset")), fault)

    @needs("guards")
    def test_nothing_is_learned_from_a_faulty_rollout(self) -> None:
        model = self.make(self._faulty("nan reward", when=5))
        before = learned(model)
        with pytest.raises(ValueError, match="nan"):
            self.learn(model)
        assert differences(before, learned(model)) == []

    @pytest.mark.parametrize("fault", NOT_FINITE)
    @needs("guards", "vectorised")
    def test_one_faulty_environment_of_several_is_named(self, fault: Fault, kind: EnvName) -> None:
        made = iter([self.env(), self._faulty(fault), self.env()])
        self._refused(self.make(several(lambda: next(made), 3, kind)), fault, r"env 1\b")

    @pytest.mark.parametrize("fault", ["short observation", "broadcast observation", "vector reward", "no reward"])
    @needs("guards", "vectorised")
    def test_wrong_shape_in_a_dummy_vec_env_is_named(self, fault: Fault) -> None:
        # Here the user's own Monitor may be the first to stumble, so that only the note says what to look at.
        self._refused(self.make(several(partial(self._faulty, fault), 2)), fault, named="shape|reward")

    @pytest.mark.parametrize("call", ["step", "reset"])
    def test_error_of_the_environment_says_where_it_came_from(self, call: Any) -> None:
        """Its type and message are the environment's own."""
        model = self.make(self._faulty("error", when=3, call=call))
        with pytest.raises(RuntimeError, match="the motor is stuck") as error:
            self.learn(model)
        if self.guards:
            assert f"{call}()" in "".join(error.value.__notes__) or call == "reset"

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork() in a process with threads
    @needs("guards", "vectorised")
    def test_error_in_a_worker_process_says_so(self, capfd: pytest.CaptureFixture[str]) -> None:
        model = self.make(several(partial(self._faulty, "error"), 2, "subproc"))
        try:
            with pytest.raises(RuntimeError, match=r"worker process.*died"):
                self.learn(model)
        finally:
            for process in model.get_env().processes:
                process.terminate()
        assert "the motor is stuck" in capfd.readouterr().err

    @needs("guards")
    def test_environment_without_end_is_no_hang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever needs whole episodes says so; all others train."""
        monkeypatch.setattr(collector, "LONG_EPISODE", 1000)  # an impatient collector, if it is this package's
        model, limit = self.make(self.env(length=None)), StopAt(50_000)
        try:
            self.learn(model, callback=limit)
        except (ValueError, RuntimeError) as error:
            assert "episode" in str(error)  # noqa: PT017
        assert model.num_timesteps < 50_000, "it would go on for ever"
        assert all_finite(model)

    @pytest.mark.parametrize("argument", [{"learning_rate": 1e6}, {"learning_rate": 1e30}], ids=str)
    @needs("guards")
    def test_learning_rate_that_is_too_large_spoils_nothing(self, argument: dict[str, Any]) -> None:
        model = self.make(**argument)
        try:
            self.learn(model)
        except ValueError as error:
            assert "learning_rate" in str(error)  # noqa: PT017
        assert all_finite(model)

    @needs("guards")
    def test_learning_rate_schedule_that_is_broken_is_named(self) -> None:
        model = self.make(learning_rate=lambda progress: progress if progress > 0.7 else float("nan"))
        with pytest.raises(ValueError, match=r"learning_rate.*nan"):
            self.learn(model)
        assert all_finite(model)

    @pytest.mark.parametrize("scale", [1e30, 1e38])
    @needs("guards")
    def test_rewards_beyond_all_bounds_spoil_nothing(self, scale: float) -> None:
        model = self.make(self.env(scale=scale))
        try:
            self.learn(model)
        except ValueError as error:
            assert re.search("reward", str(error))  # noqa: PT017
        assert all_finite(model)

    @pytest.mark.parametrize("scale", [1e19, 1e30, 1e38])
    @needs("guards")
    def test_observations_beyond_all_bounds_spoil_nothing(self, scale: float) -> None:
        """And if it cannot go on with them, they are what is blamed."""
        model = self.make(self.env(observation=spaces.Box(-scale, scale, (3,))))
        try:
            self.learn(model)
        except ValueError as error:
            assert "observation" in str(error)  # noqa: PT017
        assert all_finite(model)

    @pytest.mark.filterwarnings("ignore:.*Casting input x to numpy")  # of gymnasium, about scalar actions
    @pytest.mark.parametrize("name", ODD_SPACES)
    @needs("guards")
    def test_odd_spaces(self, name: str) -> None:
        """Accepted and right, or refused with the space named, before anything is done."""
        kind, space = ODD_SPACES[name]
        if kind == "action" and type(space).__name__ not in self.spec.action_spaces:
            pytest.skip(f"no {type(space).__name__} actions")
        chosen: dict[str, Any] = {kind: space}
        env = self.env(**chosen, reward=1.0)
        try:
            model = self.make(env)
        except ValueError as error:
            assert f"{kind}_space={space}" in str(error)  # noqa: PT017
            assert env.resets == 0
        else:
            self.learn(model)
            answer, _ = model.predict(encode(env.observation_space, 0.5))
            assert env.action_space.contains(answer.astype(env.action_space.dtype))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @needs("guards")
    def test_observation_to_predict_is_checked(self, bad: float) -> None:
        model = self.make()
        with pytest.raises(ValueError, match=rf"observation.*{bad}"):
            model.predict(np.array([0, bad, 0], np.float32))

    @needs("guards")
    def test_actions_that_do_not_start_at_zero(self) -> None:
        """Accepted and right, or refused."""
        if "Discrete" not in self.spec.action_spaces:
            pytest.skip("no Discrete actions")
        try:
            model = self.make(Echo(spaces.Discrete(3, start=5)))
        except ValueError as error:
            assert "start=5" in str(error)  # noqa: PT017
        else:
            self.learn(model)
