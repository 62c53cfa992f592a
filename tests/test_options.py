"""Options: what is refused, in which words, and what help() shows of a constructor."""

import inspect
import math
import pydoc
from decimal import Decimal
from typing import Any, Literal, Unpack

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.bases.options import (
    OnPolicyOptions,
    check_choice,
    check_count,
    check_flags,
    check_learning_rate,
    check_number,
    full_signature,
    reject_unknown,
)

NOT_NUMBERS = [None, "0.5", b"1", True, np.nan, [0.5], np.ones(2), {}, math.nan, 10**400, Ellipsis]


@pytest.mark.parametrize(
    "value", [0, 1, 0.5, np.float32(0.5), np.int64(1), np.array(0.5), th.tensor(0.5), Decimal("0.5")]
)
def test_numbers_of_every_kind_are_accepted(value):
    check_number("gamma", value, 0, 1)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1e-9, 1.0000001, math.inf, -math.inf], ids=repr)
def test_other_values_are_refused_by_name(value):
    with pytest.raises(ValueError, match=r"gamma=.*: a number in \[0, 1\] is needed") as error:
        check_number("gamma", value, 0, 1)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "interval"),
    [
        ({"low": 0}, [0, 1e300], [-1, math.inf, math.nan], r"\[0, inf\)"),
        ({"low": 0, "high": math.inf}, [0, 1e300, math.inf], [-1, math.nan], r"\[0, inf\]"),
        ({"low": 0, "high": math.inf, "above": True}, [1e-300, math.inf], [0, -1, math.nan], r"\(0, inf\]"),
        ({"low": 0, "above": True}, [1e-300, 5], [0, math.inf], r"\(0, inf\)"),
        ({"low": -2, "high": 3}, [-2, 3], [-2.1, 3.1], r"\[-2, 3\]"),
        ({"low": -2, "high": 3, "above": True}, [-1.9, 3], [-2, 3.1], r"\(-2, 3\]"),
    ],
)
def test_the_ends_of_the_interval(bounds, inside, outside, interval):
    for value in inside:
        check_number("x", value, **bounds)
    for value in outside:
        with pytest.raises(ValueError, match=rf"x=.*a number in {interval} is needed"):
            check_number("x", value, **bounds)


@pytest.mark.parametrize("value", [1, 7, np.int64(3), th.tensor(2)])
def test_counts(value):
    check_count("n_steps", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, "3", None, math.nan, math.inf, [1]], ids=repr)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"n_steps=.*: a whole number >= 1 is needed"):
        check_count("n_steps", value)


def test_a_count_may_be_optional_or_start_elsewhere():
    check_count("n", None, optional=True)
    check_count("n", 0, low=0)
    with pytest.raises(ValueError, match="n=0: a whole number >= 1 or None is needed"):
        check_count("n", 0, optional=True)
    with pytest.raises(ValueError, match="n=4: a whole number >= 5 is needed"):
        check_count("n", 4, low=5)


Color = Literal["red", "green"]


@pytest.mark.parametrize("allowed", [("red", "green", None), Color | None, Literal["red"] | Literal["green"] | None])
@pytest.mark.parametrize("value", ["red", "green", None])
def test_choices(value, allowed):
    check_choice("color", value, allowed)


@pytest.mark.parametrize("allowed", [("red", "green"), Color])
@pytest.mark.parametrize("value", ["blue", None, True, 1, "Red", ["red"], np.ones(2)], ids=repr)
def test_other_choices_are_refused_with_what_is_allowed(value, allowed):
    with pytest.raises(ValueError, match=r"color=.*: allowed are 'red', 'green'"):
        check_choice("color", value, allowed)


def test_choices_are_of_their_own_type():
    check_choice("x", 1, (1, 2))
    check_choice("x", "".join(["gre", "en"]), Color)  # equal, not identical
    for value in (True, 1.0):
        with pytest.raises(ValueError, match="allowed are 1, 2"):
            check_choice("x", value, (1, 2))


@pytest.mark.parametrize(
    ("value", "hint"), [("gren", r"\(did you mean 'green'\?\)$"), ("Red", "'red'"), ("xyz", "'green'$")]
)
def test_a_typing_error_gets_the_nearest_choice(value, hint):
    with pytest.raises(ValueError, match=hint):
        check_choice("color", value, Color)


@pytest.mark.parametrize("value", [0, 1e-3, 1e6, np.float32(0.1), lambda progress: progress])
def test_learning_rates(value):
    check_learning_rate(value)


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, None, "3e-4"], ids=repr)
def test_other_learning_rates_are_refused(value):
    with pytest.raises(ValueError, match=r"learning_rate=.*a number in \[0, 1e\+30\]"):
        check_learning_rate(value)


# --- signatures ---


def test_the_signature_lists_every_option_of_the_algorithm_and_its_bases():
    parameters = inspect.signature(REINFORCE).parameters
    own = list(inspect.signature(REINFORCE.__init__).parameters.values())[1:-1]
    base = list(inspect.signature(OnPolicyBase.__init__).parameters.values())[1:-1]
    assert set(parameters) == {p.name for p in own + base}
    assert list(parameters)[: len(own)] == [p.name for p in own]
    assert list(parameters)[-1] == "_init_setup_model"
    assert "self" not in parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    for parameter in (*base, *own):  # what the algorithm says goes before what its base says
        assert parameters[parameter.name].default == {p.name: p for p in (*base, *own)}[parameter.name].default
    assert parameters["learning_rate"].default is not inspect.Parameter.empty


def test_every_option_of_the_family_is_in_the_signature_and_the_other_way_round():
    signature = inspect.signature(OnPolicyBase).parameters
    assert set(OnPolicyOptions.__annotations__) <= set(signature)
    assert {name for name, p in signature.items() if p.kind is p.KEYWORD_ONLY} - {
        "n_steps",
        "n_episodes",
        "gae_lambda",
    } == (set(OnPolicyOptions.__annotations__))


def test_every_parameter_of_the_signature_can_be_passed():
    env = gym.make("CartPole-v1")
    values = {
        name: p.default for name, p in inspect.signature(REINFORCE).parameters.items() if p.default is not p.empty
    }
    model = REINFORCE("MlpPolicy", env, **values)
    for name in set(values) - {"policy_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs", "_init_setup_model"}:
        stored = "_stats_window_size" if name == "stats_window_size" else name
        if name not in ("seed", "device"):
            assert getattr(model, stored) == values[name]


def test_positional_arguments_go_where_the_signature_says():
    env = gym.make("CartPole-v1")
    model = REINFORCE("MlpPolicy", env, 0.5, 17, 3)
    bound = inspect.signature(REINFORCE).bind("MlpPolicy", env, 0.5, 17, 3).arguments
    for name in ("learning_rate", "n_steps", "n_episodes"):
        assert getattr(model, name) == bound[name]


def test_help_shows_the_options():
    call = next(line for line in pydoc.plain(pydoc.render_doc(REINFORCE)).splitlines() if "REINFORCE(policy:" in line)
    for word in ("n_steps", "baseline", "max_grad_norm", "stats_window_size", "_init_setup_model"):
        assert f" {word}: " in call
    assert "**" not in call


class Grandchild(REINFORCE):
    def __init__(
        self, policy: Any, env: Any, learning_rate: float = 0.5, *, twist: int = 1, **common: Unpack[OnPolicyOptions]
    ):
        super().__init__(policy, env, learning_rate, **common)


class Silent(REINFORCE):
    """No constructor of its own."""


def test_signatures_of_further_generations():
    ours, theirs = inspect.signature(Grandchild).parameters, inspect.signature(REINFORCE).parameters
    assert set(ours) == {*theirs, "twist"}
    assert list(ours)[-1] == "_init_setup_model"
    assert ours["learning_rate"].default == 0.5 != theirs["learning_rate"].default
    assert ours["baseline"].default == theirs["baseline"].default
    assert list(inspect.signature(Silent).parameters.values()) == list(theirs.values())
    assert full_signature(Grandchild) == inspect.signature(Grandchild)


# --- unknown names ---


@pytest.mark.parametrize("cls", [REINFORCE, Grandchild])
@pytest.mark.parametrize(
    ("name", "meant"), [("gama", "gamma"), ("learning_rates", "learning_rate"), ("n_epsiodes", "n_episodes")]
)
def test_a_mistyped_option_is_named_with_the_one_that_was_meant(name, meant, cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\(\) has no argument '{name}'. Did you mean '{meant}'\?"):
        cls("MlpPolicy", gym.make("CartPole-v1"), **{name: 1})


def test_an_option_like_no_other_gets_the_list():
    with pytest.raises(
        TypeError, match=r"has no argument 'qqqq'\. Known: policy, env, learning_rate, n_steps"
    ) as error:
        reject_unknown(REINFORCE, {"qqqq": 1})
    for name in inspect.signature(REINFORCE).parameters:
        assert name in str(error.value)
    reject_unknown(REINFORCE, {})


@pytest.mark.parametrize("name", ["monitor_wrapper", "supported_action_spaces"])
def test_what_is_between_the_bases_is_no_option(name):
    with pytest.raises(TypeError, match=f"no argument '{name}'"):
        REINFORCE("MlpPolicy", gym.make("CartPole-v1"), **{name: None})
    assert name not in inspect.signature(REINFORCE).parameters


@pytest.mark.parametrize("value", ["no", "False", None, 0, 1, 1.0, [], th.tensor(True)], ids=repr)
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match=r"normalize_advantage=.*: True or False is needed") as error:
        REINFORCE("MlpPolicy", "CartPole-v1", normalize_advantage=value)
    assert repr(value) in str(error.value)


def test_flags_of_every_kind_are_accepted_and_nothing_else_is_looked_at():
    class Own(REINFORCE):
        """One flag more."""

        def __init__(self, policy, env, cautious: bool = False, n: "int | bool" = 0, **common: Unpack[OnPolicyOptions]):
            self.cautious = cautious
            self.n = n
            super().__init__(policy, env, **common)

    for flags in ({"use_sde": False}, {"cautious": np.True_}, {"n": 3}, {"verbose": 0}, {"discount_states": True}):
        check_flags(Own, flags)
        Own("MlpPolicy", "CartPole-v1", **flags)
    Own("MlpPolicy", "CartPole-v1", True)
    for arguments, name in ((("yes",), "cautious"), ((), "use_sde")):
        with pytest.raises(TypeError, match=f"{name}='yes'"):
            Own("MlpPolicy", "CartPole-v1", *arguments, **({} if arguments else {"use_sde": "yes"}))
