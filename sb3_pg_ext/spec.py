"""The record of one algorithm (:class:`AlgorithmSpec`) and the plain data that describe its search space.

A search space maps the name of a constructor argument to a dimension. A dimension is frozen, comparable,
JSON-serialisable data; :func:`suggest` turns a space and an Optuna trial into keyword arguments for the constructor. A
dotted name such as ``"policy_kwargs.net_arch"`` fills a nested dict.

>>> space = {
...     "learning_rate": Float(1e-5, 1e-2, log=True),
...     "gamma": OneMinus(1e-4, 0.1),
...     "baseline": Choice("value", "mean", None),
...     "gae_lambda": When("baseline", ("value",), Choice(0.95, 1.0)),
... }
>>> space_from_json(space_to_json(space)) == space
True
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

Family = Literal["on_policy", "off_policy", "policy_search", "model_based"]
ActionSpaceName = Literal["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
Holds = Literal["mean", "limit", "direction"]
GradientKind = Literal["score_function", "pathwise", "perturbation"]
ALL_FAMILIES: tuple[Family, ...] = get_args(Family)
ALL_ACTION_SPACES: tuple[ActionSpaceName, ...] = get_args(ActionSpaceName)


class Trial(Protocol):
    """What :func:`suggest` needs of an ``optuna.trial.Trial`` (a ``FixedTrial`` will do)."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Float:
    """A real number in ``[low, high]``, uniform or (``log=True``) log-uniform."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.log)

    def suggest(self, name: str, trial: Trial) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class OneMinus:
    """``1 - x`` with x log-uniform in ``[low, high]``: the natural scale of discounts and trace decays.

    The trial stores x under ``"1-<name>"``, so that a study shows the number that was sampled.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, log=True)
        if self.high > 1:
            raise ValueError(f"{self}: high={self.high} must not exceed 1, or 1 - x is negative")

    def suggest(self, name: str, trial: Trial) -> float:
        return 1.0 - trial.suggest_float(f"1-{name}", self.low, self.high, log=True)


@dataclass(frozen=True)
class Int:
    """A whole number in ``[low, high]``; with ``power=2`` its exponent, so ``Int(3, 8, power=2)`` is 8, ... 256."""

    low: int
    high: int
    log: bool = False
    power: int | None = None

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.log)
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise TypeError(f"{self}: low and high must be whole numbers")
        if self.power is not None and (self.power < 2 or self.low < 0 or self.log):
            raise ValueError(f"{self}: power must be at least 2, with low >= 0 and without log=True")

    def suggest(self, name: str, trial: Trial) -> int:
        if self.power is not None:
            return self.power ** trial.suggest_int(f"log{self.power}({name})", self.low, self.high)
        return trial.suggest_int(name, self.low, self.high, log=self.log)


@dataclass(frozen=True, init=False, eq=False)
class Choice:
    """One of several distinct values. Lists and dicts are allowed: the trial then stores their JSON text."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any):
        if not options:
            raise ValueError("Choice() needs at least one option")
        object.__setattr__(self, "options", tuple(_plain(option) for option in options))
        if len({_label(option) for option in self.options}) < len(options):
            raise ValueError(f"Choice{options}: options must differ (True equals 1, a list equals its own JSON text)")

    # By text, because 1 == 1.0 == True, and because lists and dicts have no hash.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and _text(self.options) == _text(other.options)

    def __hash__(self) -> int:
        return hash(_text(self.options))

    def suggest(self, name: str, trial: Trial) -> Any:
        options = {_label(option): option for option in self.options}
        # A copy: who extends a sampled net_arch must not extend the search space.
        return deepcopy(options[trial.suggest_categorical(name, list(options))])


@dataclass(frozen=True)
class When:
    """``dimension``, sampled only if the argument ``name`` was sampled (earlier in the space) as one of ``values``."""

    name: str
    values: tuple[Any, ...]
    dimension: Float | OneMinus | Int | Choice

    def __post_init__(self) -> None:
        if not isinstance(self.values, (tuple, list)) or not self.values:
            raise TypeError(
                f"When({self.name!r}, values={self.values!r}): values must be a tuple of at least one value"
            )
        if not isinstance(self.dimension, (Float, OneMinus, Int, Choice)):
            raise TypeError(f"When({self.name!r}): {self.dimension!r} is not a Float, OneMinus, Int or Choice")
        object.__setattr__(self, "values", tuple(_plain(value) for value in self.values))

    def __hash__(self) -> int:
        return hash((self.name, self.dimension))

    def suggest(self, name: str, trial: Trial) -> Any:
        return self.dimension.suggest(name, trial)


Dimension = Float | OneMinus | Int | Choice | When
Space = Mapping[str, Dimension]
_DIMENSIONS: dict[str, Any] = {"float": Float, "one_minus": OneMinus, "int": Int, "choice": Choice, "when": When}


def _check_range(dimension: object, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{dimension}: low={low} and high={high} must be finite, and low must not exceed high")
    if log and low <= 0:
        raise ValueError(f"{dimension}: low={low} must be positive on a log scale")


def _plain(value: Any) -> Any:
    """``value`` as JSON gives it back: a tuple becomes a list.

    :raises TypeError: it holds something else than None, bool, numbers, str, lists and dicts with str keys
    """
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("nan is not an option: it does not equal itself")
        return float(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"option {value!r} is not plain data (None, bool, number, str, list, dict with str keys)")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _label(option: Any) -> bool | int | float | str | None:
    """How the trial stores ``option``."""
    return _text(option) if isinstance(option, (list, dict)) else option


def suggest(space: Space, trial: Trial) -> dict[str, Any]:
    """Sample constructor arguments from ``space``.

    :param space: argument name -> dimension; the condition of a :class:`When` must stand before it
    :param trial: an Optuna trial, or a ``FixedTrial`` to turn stored parameters back into arguments
    :return: keyword arguments; dotted names are nested, inactive conditional arguments are left out
    :raises KeyError: a :class:`When` refers to a name that does not stand before it
    """
    check_space(space)
    flat: dict[str, Any] = {}
    for name, dimension in space.items():
        if isinstance(dimension, When) and (dimension.name not in flat or flat[dimension.name] not in dimension.values):
            continue
        flat[name] = dimension.suggest(name, trial)
    return nest(flat)


def check_space(space: Space) -> None:
    """Refuse a space of which some part could never be sampled.

    :raises TypeError: a value is not a dimension
    :raises KeyError: a :class:`When` refers to a name that does not stand before it
    :raises ValueError: a :class:`When` waits for a value that its condition never takes
    """
    before: dict[str, Dimension] = {}
    for name, dimension in space.items():
        if not isinstance(dimension, Dimension):
            raise TypeError(f"{name!r}: {dimension!r} is not a Float, OneMinus, Int, Choice or When")
        if isinstance(dimension, When):
            if dimension.name not in before:
                raise KeyError(f"{name!r} depends on {dimension.name!r}, which must stand before it in {list(space)}")
            _check_condition(name, dimension, before[dimension.name])
        before[name] = dimension


def _check_condition(name: str, when: When, condition: Dimension) -> None:
    condition = condition.dimension if isinstance(condition, When) else condition
    never = [value for value in when.values if isinstance(condition, Choice) and value not in condition.options]
    if never:
        raise ValueError(f"{name!r} depends on {when.name!r} being one of {never}, but that is a {condition}")


def is_used(dimension: Dimension, settings: Mapping[str, Any]) -> bool:
    """Whether the condition on which ``dimension`` is searched holds in ``settings``, which are nested."""
    return not isinstance(dimension, When) or lookup(settings, dimension.name) in dimension.values


def lookup(settings: Any, name: str) -> Any:
    """The value of a dotted name in nested settings, ``None`` where there is none; see :func:`nest`."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"policy_kwargs.net_arch": [64]}`` -> ``{"policy_kwargs": {"net_arch": [64]}}``.

    A dotted name overrides the same entry of a dict (or None) under the undotted name. ``flat`` is left as it is.

    :raises ValueError: a dotted name leads into something that is not a dict
    """
    nested: dict[str, Any] = {}
    for name, value in sorted(flat.items(), key=lambda item: item[0].count(".")):
        *parents, leaf = name.split(".")
        target = nested
        for parent in parents:
            branch = {} if target.get(parent) is None else target[parent]
            if not isinstance(branch, dict):
                raise ValueError(f"{name!r} needs {parent!r} to be a dict, but it is {branch!r}")
            target[parent] = dict(branch)
            target = target[parent]
        target[leaf] = value
    return nested


def space_to_json(space: Space) -> str:
    """``space`` as JSON text; :func:`space_from_json` is its inverse."""
    check_space(space)
    return json.dumps({name: _encode(dimension) for name, dimension in space.items()})


def _encode(dimension: Dimension) -> dict[str, Any]:
    kind = next(name for name, cls in _DIMENSIONS.items() if isinstance(dimension, cls))
    inner = {"dimension": _encode(dimension.dimension)} if isinstance(dimension, When) else {}
    return {"type": kind, **asdict(dimension), **inner}


def space_from_json(text: str) -> dict[str, Dimension]:
    """Rebuild a space from :func:`space_to_json`.

    :raises ValueError: an entry is not a dimension; the message names it
    """
    space: dict[str, Dimension] = {}
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"a search space is a table of argument names, not {text[:40]!r}")
    for name, entry in document.items():
        try:
            space[name] = _decode(entry)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"search space entry {name!r}: {error}") from error
    return space


def _decode(entry: Mapping[str, Any]) -> Any:
    fields = dict(entry)
    kind = fields.pop("type", None)
    if kind not in _DIMENSIONS:
        raise ValueError(f"unknown dimension type {kind!r}; known: {sorted(_DIMENSIONS)}")
    if kind == "choice":
        return Choice(*fields["options"])
    if kind == "when":
        fields["dimension"] = _decode(fields["dimension"])
    return _DIMENSIONS[kind](**fields)


def constructor_parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of ``cls(...)``, and whether it takes others as well.

    A constructor that ends in ``**kwargs`` hands them to its parent, so the parent's parameters follow, and so on. The
    ``__signature__`` that a class sets for itself goes before its ``__init__``; an inherited one is the parent's.
    """
    named: dict[str, inspect.Parameter] = {}
    open_ended = False
    for owner in cls.__mro__[:-1]:
        own = vars(owner)
        if "__signature__" not in own and "__init__" not in own:
            continue
        signature = own["__signature__"] if "__signature__" in own else inspect.signature(own["__init__"])
        parameters = signature.parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                named.setdefault(p.name, p)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not open_ended:
            break
    return named, open_ended


@dataclass(frozen=True)
class GradientClaim:
    """What one update of an algorithm is an estimate of. :mod:`sb3_pg_ext.diagnostics` measures whether that is so.

    The update is taken with plain gradient ascent, a learning rate of 1, no clipping, no entropy bonus and no critic
    loss, from M whole episodes of H steps each, so that the change of the policy's parameters is the estimate.

    :param name: of the variant, unique within the algorithm
    :param options: constructor arguments with which that holds, beside those just named; ``"testbed:<name>"`` stands
        for what the testbed knows: its ``horizon`` H, the number of ``episodes`` M, of ``steps`` M H, and where there
        are equations its ``dynamics`` (with the rewards) and ``termination``
    :param target: what is estimated: a name of ``sb3_pg_ext.diagnostics.targets``, or ``"module:function"`` of your own
        (from testbed and model to P numbers)
    :param holds: ``"mean"``: the estimate's expectation is the target, for every M; ``"limit"``: its bias vanishes as
        1 / M does; ``"direction"``: as ``"limit"``, up to a positive factor
    :param bias: in a sentence, why the target is not the gradient of the objective; empty where it is
    :param mean_over: the update follows the mean over ``"episodes"``, or over ``"steps"``, which is 1 / H of it; the
        natural gradient is the same for both
    :param estimate: how an estimate is had: a name of ``sb3_pg_ext.diagnostics.estimates``, or ``"module:function"``
        (from testbed and model to P numbers)
    :param action_spaces: where the variant exists
    :param kind: what is differentiated: the log-probability of actions (``"score_function"``), rewards or values
        through the actions (``"pathwise"``), or nothing, where parameters are perturbed (``"perturbation"``)
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str = "gradient"
    holds: Holds = "mean"
    bias: str = ""
    mean_over: Literal["episodes", "steps"] = "episodes"
    estimate: str = "one_update"
    action_spaces: tuple[ActionSpaceName, ...] = ALL_ACTION_SPACES
    kind: GradientKind = "score_function"

    def __post_init__(self) -> None:
        choices = ("holds", get_args(Holds)), ("mean_over", ("episodes", "steps")), ("kind", get_args(GradientKind))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} of the claim {self.name!r}: allowed are {allowed}")
        if not set(self.action_spaces) <= set(ALL_ACTION_SPACES):
            raise ValueError(f"action_spaces={self.action_spaces} of {self.name!r}: allowed are {ALL_ACTION_SPACES}")


@dataclass(frozen=True)
class AlgorithmSpec:
    """Everything the rest of the package needs to know of one algorithm.

    :param cls: the Stable-Baselines3 compatible class
    :param family: which family of methods it belongs to
    :param paper: author, year, title and, where useful, the equation
    :param action_spaces: names of the gymnasium action spaces that it accepts
    :param space: the search space for tuning; its names are arguments of the constructor
    :param policies: names accepted as ``policy``, the default first
    :param tags: what a user of the class has to know, such as ``"action_masks"`` or ``"recurrent"``
    :param claims: what its updates are estimates of; ``sb3-pg gradlab`` measures it
    """

    cls: type
    family: Family
    paper: str
    action_spaces: tuple[ActionSpaceName, ...] = ALL_ACTION_SPACES
    space: Space = field(default_factory=dict)
    policies: tuple[str, ...] = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
    tags: tuple[str, ...] = ()
    claims: tuple[GradientClaim, ...] = ()
    _ENVIRONMENT: ClassVar[frozenset[str]] = frozenset({"self", "policy", "env", "_init_setup_model"})

    def __post_init__(self) -> None:
        if not isinstance(self.cls, type):
            raise TypeError(f"cls={self.cls!r} of an AlgorithmSpec must be a class")
        owner = self.cls.__name__
        for name in ("action_spaces", "policies", "tags"):
            if not isinstance(getattr(self, name), tuple):
                raise TypeError(f"{name}={getattr(self, name)!r} of {owner} must be a tuple of str")
        if self.family not in ALL_FAMILIES:
            raise ValueError(f"family={self.family!r} of {owner}: allowed are {ALL_FAMILIES}")
        unknown = sorted(set(self.action_spaces) - set(ALL_ACTION_SPACES))
        if unknown or not self.action_spaces:
            raise ValueError(f"action_spaces={self.action_spaces} of {owner}: allowed are {ALL_ACTION_SPACES}")
        if not self.policies:
            raise ValueError(f"policies of {owner} is empty; name at least one")
        check_space(self.space)
        named, open_ended = self._constructor
        strange = [name for name in self.space if name.split(".")[0] not in named]
        if strange and not open_ended:
            raise ValueError(f"space of {owner} holds {strange}, which its constructor does not take: {list(named)}")
        self._check_claims(owner, list(named), open_ended)

    def _check_claims(self, owner: str, named: list[str], open_ended: bool) -> None:
        if not (isinstance(self.claims, tuple) and all(isinstance(claim, GradientClaim) for claim in self.claims)):
            raise TypeError(f"claims={self.claims!r} of {owner} must be a tuple of GradientClaim")
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"claims of {owner} must have different names, not {names}")
        for claim in self.claims:
            strange = [option for option in claim.options if option not in named]
            if strange and not open_ended:
                raise ValueError(f"the claim {claim.name!r} of {owner} sets {strange}, which it does not take: {named}")

    @property
    def _constructor(self) -> tuple[dict[str, inspect.Parameter], bool]:
        named, open_ended = constructor_parameters(self.cls)
        return {name: p for name, p in named.items() if name not in self._ENVIRONMENT}, open_ended

    @property
    def defaults(self) -> dict[str, Any]:
        """Constructor arguments and their defaults, read from the signature: the only place where they are written."""
        return {name: p.default for name, p in self._constructor[0].items() if p.default is not p.empty}

    @property
    def summary(self) -> str:
        """First line of the class docstring."""
        return (inspect.getdoc(self.cls) or self.cls.__name__).splitlines()[0]
