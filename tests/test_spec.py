"""Search spaces: sampling, conditions, JSON; and what an AlgorithmSpec derives and refuses."""

import copy
import inspect
import math
import pickle

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from sb3_pg_ext.spec import (
    AlgorithmSpec,
    Choice,
    Float,
    Int,
    OneMinus,
    When,
    check_space,
    nest,
    space_from_json,
    space_to_json,
    suggest,
)

SPACE = {
    "learning_rate": Float(1e-5, 1e-2, log=True),
    "clip_range": Float(0.1, 0.4),
    "gamma": OneMinus(1e-4, 0.1),
    "n_steps": Int(3, 8, power=2),
    "n_epochs": Int(1, 20, log=True),
    "baseline": Choice("value", "mean", None),
    "gae_lambda": When("baseline", ("value",), Choice(0.95, 1.0)),
    "weights": When("baseline", ("value", None), Choice([1, 2], {"b": 1, "a": [2.5]}, "[1, 2, 3]")),
    "policy_kwargs.net_arch": Choice([64], [64, 64], []),
    "policy_kwargs.ortho_init": Choice(True, False),
}


def samples(space, n=60, seed=0):
    """``n`` pairs (parameters that Optuna stores, constructor arguments)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    pairs = []
    for _ in range(n):
        trial = study.ask()
        arguments = suggest(space, trial)
        pairs.append((dict(trial.params), arguments))
    return pairs


# --- sampling


def test_every_sample_lies_in_its_range_and_reaches_every_part_of_it():
    drawn = [arguments for _, arguments in samples(SPACE)]
    assert all(1e-5 <= a["learning_rate"] <= 1e-2 for a in drawn)
    assert all(0.1 <= a["clip_range"] <= 0.4 for a in drawn)
    assert all(0.9 <= a["gamma"] <= 1 - 1e-4 for a in drawn)
    assert {a["n_steps"] for a in drawn} == {8, 16, 32, 64, 128, 256}
    assert all(1 <= a["n_epochs"] <= 20 and isinstance(a["n_epochs"], int) for a in drawn)
    assert {a["baseline"] for a in drawn} == {"value", "mean", None}
    assert {str(a["policy_kwargs"]["net_arch"]) for a in drawn} == {"[64]", "[64, 64]", "[]"}
    assert {a["policy_kwargs"]["ortho_init"] for a in drawn} == {True, False}


@pytest.mark.parametrize(
    ("dimension", "middle"),
    [
        (Float(1e-5, 1e-1, log=True), 1e-3),
        (Float(0.0, 2.0), 1.0),
        (OneMinus(1e-4, 1e-2), 1 - 1e-3),
        (Int(1, 10_000, log=True), 100),
        (Int(0, 1000), 500),
    ],
)
def test_the_scale_puts_half_of_the_samples_below_the_middle(dimension, middle):
    below = [arguments["x"] < middle for _, arguments in samples({"x": dimension}, n=400)]
    assert 150 < sum(below) < 250  # 200 +- 5 standard deviations


def test_one_minus_stores_the_small_number_and_returns_its_complement():
    assert suggest({"gamma": OneMinus(1e-4, 0.1)}, FixedTrial({"1-gamma": 0.03})) == {"gamma": 0.97}


def test_power_stores_the_exponent():
    assert suggest({"n": Int(0, 9, power=2)}, FixedTrial({"log2(n)": 0})) == {"n": 1}
    assert suggest({"n": Int(0, 9, power=3)}, FixedTrial({"log3(n)": 4})) == {"n": 81}


def test_lists_and_dicts_are_stored_as_text_and_returned_as_they_are():
    space = {"x": Choice([64, 64], {"vf": [1], "pi": []}, "tanh", None, 0.5, True)}
    for text, value in [("[64, 64]", [64, 64]), ('{"pi": [], "vf": [1]}', {"pi": [], "vf": [1]}), (None, None)]:
        assert suggest(space, FixedTrial({"x": text})) == {"x": value}
    stored = {repr(params["x"]) for params, _ in samples(space)}
    assert stored == {"'[64, 64]'", """'{"pi": [], "vf": [1]}'""", "'tanh'", "None", "0.5", "True"}


def test_a_sample_can_be_changed_without_changing_the_space():
    space = {"policy_kwargs": Choice({"net_arch": [64]}), "policy_kwargs.ortho_init": Choice(True)}
    before = copy.deepcopy(space)
    [(_, arguments)] = samples(space, n=1)
    assert arguments == {"policy_kwargs": {"net_arch": [64], "ortho_init": True}}
    arguments["policy_kwargs"]["net_arch"].append(32)
    assert space == before


def test_stored_parameters_give_the_same_arguments_again():
    for params, arguments in samples(SPACE):
        assert suggest(SPACE, FixedTrial(params)) == arguments


# --- conditions


def test_a_conditional_argument_appears_only_under_its_condition():
    drawn = [arguments for _, arguments in samples(SPACE)]
    assert all(("gae_lambda" in a) == (a["baseline"] == "value") for a in drawn)
    assert all(("weights" in a) == (a["baseline"] in ("value", None)) for a in drawn)


def test_a_condition_that_is_itself_inactive_switches_off_what_depends_on_it():
    space = {
        "optimizer": Choice("sgd", "adam"),
        "momentum": When("optimizer", ("sgd",), Choice(0.0, 0.9)),
        "nesterov": When("momentum", (0.9,), Choice(True, False)),
    }
    drawn = [arguments for _, arguments in samples(space)]
    assert {frozenset(a) for a in drawn} == {
        frozenset({"optimizer"}),
        frozenset({"optimizer", "momentum"}),
        frozenset({"optimizer", "momentum", "nesterov"}),
    }
    assert all(a["momentum"] == 0.9 for a in drawn if "nesterov" in a)


@pytest.mark.parametrize(
    ("space", "error", "words"),
    [
        ({"lam": When("baseline", ("value",), Float(0, 1))}, KeyError, "'lam' depends on 'baseline'"),
        (
            {"lam": When("baseline", ("value",), Float(0, 1)), "baseline": Choice("value", "mean")},
            KeyError,
            "must stand before it",
        ),
        (
            {"baseline": Choice("value", "mean"), "lam": When("baseline", ("vaule",), Float(0, 1))},
            ValueError,
            "vaule",
        ),
        ({"lam": (0.9, 1.0)}, TypeError, "'lam'.*not a Float"),
    ],
)
def test_a_space_with_a_part_that_can_never_be_sampled_is_refused(space, error, words):
    for use in (check_space, lambda s: suggest(s, FixedTrial({"baseline": "mean"})), space_to_json):
        with pytest.raises(error, match=words):
            use(space)


# --- refusals of single dimensions


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: Float(2, 1), ValueError, "low=2 and high=1"),
        (lambda: Float(0, math.inf), ValueError, "must be finite"),
        (lambda: Float(math.nan, 1), ValueError, "must be finite"),
        (lambda: Float(0, 1, log=True), ValueError, "low=0 must be positive"),
        (lambda: OneMinus(0, 0.1), ValueError, "low=0 must be positive"),
        (lambda: OneMinus(0.1, 1.5), ValueError, "must not exceed 1"),
        (lambda: Int(0, 8, log=True), ValueError, "low=0 must be positive"),
        (lambda: Int(1, 2.5), TypeError, "whole numbers"),
        (lambda: Int(3, 8, power=1), ValueError, "power must be at least 2"),
        (lambda: Int(-1, 8, power=2), ValueError, "low >= 0"),
        (lambda: Int(1, 8, power=2, log=True), ValueError, "without log"),
        (lambda: Choice(), ValueError, "at least one option"),
        (lambda: Choice(1, True), ValueError, "must differ"),
        (lambda: Choice([1], "[1]"), ValueError, "must differ"),
        (lambda: Choice(math.nan), ValueError, "nan"),
        (lambda: Choice(int), TypeError, "class 'int'.*not plain data"),
        (lambda: Choice([{1: 2}]), TypeError, "not plain data"),
        (lambda: When("baseline", "value", Float(0, 1)), TypeError, "values must be a tuple"),
        (lambda: When("baseline", (), Float(0, 1)), TypeError, "at least one value"),
        (lambda: When("a", (1,), When("b", (1,), Float(0, 1))), TypeError, "not a Float"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused_when_it_is_written(build, error, words):
    with pytest.raises(error, match=words):
        build()


# --- plain data

names = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ordered = st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)).map(sorted)
ordered_int = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted)
small_int = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


def differ(options):
    try:
        return bool(Choice(*options))
    except ValueError:
        return False


choices = st.lists(plain, min_size=1, max_size=4).filter(differ).map(lambda options: Choice(*options))
unconditional = st.one_of(
    st.builds(lambda r, log: Float(*r, log=log), ordered, st.booleans()),
    st.builds(lambda r: OneMinus(r[0] / 1e9, r[1] / 1e9), ordered),
    st.builds(lambda r, log: Int(*r, log=log), ordered_int, st.booleans()),
    st.builds(lambda r, power: Int(*r, power=power), small_int, st.integers(2, 3)),
    choices,
)


@st.composite
def spaces(draw):
    space = draw(st.dictionaries(names, unconditional, max_size=5))
    for name, condition in list(space.items()):
        if isinstance(condition, Choice) and draw(st.booleans()):
            values = draw(st.lists(st.sampled_from(condition.options), min_size=1, max_size=2))
            space[f"under {name}"] = When(name, tuple(values), draw(unconditional))
    return space


@settings(max_examples=150, deadline=None)
@given(spaces())
def test_a_space_survives_json_pickle_and_copy(space):
    again = space_from_json(space_to_json(space))
    assert list(again.items()) == list(space.items())
    for name, dimension in space.items():
        assert pickle.loads(pickle.dumps(dimension)) == dimension == copy.deepcopy(dimension)
        assert hash(again[name]) == hash(dimension)


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**31))
def test_any_space_can_be_sampled_and_replayed(space, seed):
    for params, arguments in samples(space, n=3, seed=seed):
        assert suggest(space, FixedTrial(params)) == arguments
        assert suggest(space_from_json(space_to_json(space)), FixedTrial(params)) == arguments


def test_choices_differ_where_their_json_differs():
    assert Choice(1) != Choice(True) != Choice(1.0) != Choice(1)
    assert Choice((64, 64)) == Choice([64, 64])
    assert Choice({"a": 1, "b": 2}) == Choice({"b": 2, "a": 1})
    assert len({Choice([64]), Choice([64]), When("a", ([1],), Float(0, 1)), When("a", ([1],), Float(0, 1))}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"x": {"type": "normal"}}', "'x'.*unknown dimension type 'normal'"),
        ('{"x": {"low": 1}}', "'x'.*unknown dimension type None"),
        ('{"x": {"type": "float", "low": 1}}', "'x'.*high"),
        ('{"x": {"type": "choice"}}', "'x'.*options"),
        ('{"x": {"type": "int", "low": 1, "high": 2, "step": 3}}', "'x'.*step"),
        ('{"x": [1, 2]}', "'x'"),
    ],
)
def test_json_that_is_no_space_is_refused_by_name(text, words):
    with pytest.raises(ValueError, match=words):
        space_from_json(text)


# --- nest


def test_nest():
    assert nest({"a": 1, "b.c": 2, "b.d.e": 3}) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert nest({"b.c": 2, "b": {"c": 1, "d": 3}}) == {"b": {"c": 2, "d": 3}}
    assert nest({"b": None, "b.c": 2}) == {"b": {"c": 2}}


def test_nest_leaves_its_argument_alone():
    flat = {"b": {"c": {"d": 1}}, "b.c.e": 2}
    assert nest(flat) == {"b": {"c": {"d": 1, "e": 2}}}
    assert flat == {"b": {"c": {"d": 1}}, "b.c.e": 2}


@pytest.mark.parametrize("flat", [{"b": 1, "b.c": 2}, {"b.c": 2, "b": 1}])
def test_nest_refuses_a_name_that_leads_into_a_number(flat):
    with pytest.raises(ValueError, match=r"'b\.c' needs 'b' to be a dict, but it is 1"):
        nest(flat)


# --- AlgorithmSpec


class Plain:
    """One line.

    More lines.
    """

    def __init__(
        self, policy, env, needed, learning_rate=1e-3, policy_kwargs=None, *, seed=None, _init_setup_model=True
    ):
        pass


class Heir(Plain):
    """Hands what it does not know to its parent."""

    def __init__(self, policy, env, n_steps=5, learning_rate=0.1, **common):
        pass


class Silent(Heir):
    """Has no constructor of its own."""


class Open:
    def __init__(self, policy, env, n_steps=5, **anything):
        pass


class Declared(Open):
    """Takes ``**common`` and says in ``__signature__`` what they are."""

    __signature__ = inspect.Signature(
        [
            inspect.Parameter("policy", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("env", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("n_steps", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=5),
            inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )


class HeirOfDeclared(Declared):
    def __init__(self, policy, env, target=0.5, **common):
        pass


def spec_of(cls=Plain, **kwargs):
    return AlgorithmSpec(cls, **{"family": "on_policy", "paper": "", **kwargs})


def test_defaults_are_those_of_the_signature():
    assert spec_of(Plain).defaults == {"learning_rate": 1e-3, "policy_kwargs": None, "seed": None}
    assert spec_of(Open).defaults == {"n_steps": 5}
    assert spec_of(Declared).defaults == {"n_steps": 5, "seed": None}


def test_defaults_behind_double_star_are_those_of_the_parents():
    inherited = {"n_steps": 5, "learning_rate": 0.1, "policy_kwargs": None, "seed": None}
    assert spec_of(Heir).defaults == spec_of(Silent).defaults == inherited
    assert spec_of(HeirOfDeclared).defaults == {"target": 0.5, "n_steps": 5, "seed": None}


def test_the_summary_is_the_first_line_of_the_docstring():
    assert spec_of(Plain).summary == "One line."
    assert spec_of(type("Bare", (), {})).summary == "Bare"


def test_the_space_may_only_name_arguments_of_the_constructor():
    spec_of(Plain, space={"learning_rate": Float(0, 1), "policy_kwargs.net_arch": Choice([64])})
    spec_of(Heir, space={"n_steps": Int(1, 2), "seed": Int(1, 2)})
    spec_of(Open, space={"whatever": Float(0, 1)})  # **anything could take it
    mistakes = [(Plain, "lerning_rate"), (Plain, "env"), (Heir, "whatever"), (Declared, "learning_rate")]
    for cls, name in mistakes:
        with pytest.raises(ValueError, match=rf"space of {cls.__name__} holds \['{name}'\].*constructor"):
            spec_of(cls, space={name: Float(0, 1)})


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"cls": Plain(1, 2, 3)}, TypeError, "must be a class"),
        ({"family": "onpolicy"}, ValueError, "family='onpolicy' of Plain: allowed are .*'on_policy'"),
        ({"action_spaces": ("Box", "Tuple")}, ValueError, "'Tuple'.*of Plain: allowed are .*'Discrete'"),
        ({"action_spaces": ()}, ValueError, "action_spaces"),
        ({"action_spaces": "Box"}, TypeError, "action_spaces='Box'.*tuple"),
        ({"policies": "MlpPolicy"}, TypeError, "policies='MlpPolicy'.*tuple"),
        ({"policies": ()}, ValueError, "policies"),
        ({"tags": "recurrent"}, TypeError, "tags"),
        ({"space": {"seed": When("policy_kwargs", (1,), Float(0, 1))}}, KeyError, "'seed' depends on"),
    ],
)
def test_a_record_with_a_mistake_is_refused(kwargs, error, words):
    with pytest.raises(error, match=words):
        spec_of(**kwargs)
