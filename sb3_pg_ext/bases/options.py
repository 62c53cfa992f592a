"""The options that every algorithm of a family takes, and their checks."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg_ext.spec import constructor_parameters


class CommonOptions(TypedDict, total=False):
    """Keyword arguments of every algorithm; the defaults stand in the signature of the family's base class."""

    policy_kwargs: dict[str, Any] | None
    stats_window_size: int
    tensorboard_log: str | None
    verbose: int
    seed: int | None
    device: th.device | str
    _init_setup_model: bool


class OnPolicyOptions(CommonOptions, total=False):
    """Keyword arguments of every on-policy algorithm."""

    gamma: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    use_sde: bool
    sde_sample_freq: int
    rollout_buffer_class: type | None
    rollout_buffer_kwargs: dict[str, Any] | None


class OffPolicyOptions(CommonOptions, total=False):
    """Keyword arguments of every replay-based algorithm."""

    buffer_size: int
    learning_starts: int
    batch_size: int
    tau: float
    gamma: float
    train_freq: int | tuple[int, str]
    gradient_steps: int
    action_noise: ActionNoise | None
    replay_buffer_class: type | None
    replay_buffer_kwargs: dict[str, Any] | None
    optimize_memory_usage: bool
    n_steps: int
    max_grad_norm: float


class PolicySearchOptions(CommonOptions, total=False):
    """Keyword arguments of every search in parameter space."""

    n_eval_episodes: int
    common_seeds: bool
    normalize_observations: bool
    alive_bonus_offset: float
    zero_policy: bool
    deploy: Literal["mean", "best"]


def check_number(name: str, value: Any, low: float, high: float | None = None, *, above: bool = False) -> None:
    """:raises ValueError: ``value`` is not a number in [low, high]

    :param high: None allows any finite number, ``math.inf`` infinity as well
    :param above: ``low`` itself is not allowed
    """
    number = _as_float(value)
    if not ((low < number if above else low <= number) and (number < math.inf if high is None else number <= high)):
        interval = f"{'(' if above else '['}{low:g}, {'inf)' if high is None else f'{high:g}]'}"
        raise ValueError(f"{name}={value!r}: a number in {interval} is needed")


def _as_float(value: Any) -> float:
    """NaN for whatever is no number."""
    try:
        return math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_count(name: str, value: Any, low: int = 1, *, optional: bool = False) -> None:
    """:raises ValueError: ``value`` is not a whole number >= low (or None, if ``optional``)"""
    if optional and value is None:
        return
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < low:
        raise ValueError(f"{name}={value!r}: a whole number >= {low}{' or None' if optional else ''} is needed")


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """:raises ValueError: ``value`` is none of ``allowed`` (a collection, or a ``Literal``, possibly ``| None``)"""
    values = tuple(allowed) if isinstance(allowed, Collection) else _literal_values(allowed)
    if not any(value is a or (type(value) is type(a) and value == a) for a in values):
        near = difflib.get_close_matches(str(value), [a for a in values if isinstance(a, str)], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, values))}{hint}")


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    for arg in get_args(annotation):
        found += [None] if arg is type(None) else _literal_values(arg) or [arg]
    return tuple(found)


def check_learning_rate(value: float | Schedule, name: str = "learning_rate") -> None:
    """:raises ValueError: neither a schedule nor a finite number >= 0"""
    if not callable(value):
        check_number(name, value, 0.0, 1e30)


def full_signature(cls: type) -> inspect.Signature:
    """The constructor's signature with ``**common`` replaced by the base class's own keyword arguments.

    A base class ends the chain by a last parameter ``**unknown``, which it takes only to refuse it with a good message.
    """
    own = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    if own.pop("unknown", None) is not None:
        parameters = list(own.values())[1:]
    else:
        parameters = [p for name, p in constructor_parameters(cls)[0].items() if name != "self"]
    # sorted() is stable: positional ones first, as Python demands; SB3 keeps _init_setup_model last.
    return inspect.Signature(sorted(parameters, key=lambda p: (p.kind, p.name == "_init_setup_model")))


def reject_unknown(cls: type, unknown: Iterable[str]) -> None:
    """:raises TypeError: if there is an unknown argument; names the nearest known one"""
    for name in unknown:
        raise unknown_argument(cls.__name__, name, list(inspect.signature(cls).parameters))


def unknown_argument(call: str, name: str, known: list[str]) -> TypeError:
    """The error for an argument ``name`` of ``call(...)`` that is none of ``known``."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return TypeError(f"{call}() has no argument {name!r}.{hint} Known: {', '.join(known)}")


def check_flags(cls: type, arguments: Mapping[str, Any]) -> None:
    """Every argument that the constructor declares as ``bool`` must be one: any text, ``"no"`` too, would count as yes.

    :param arguments: name -> value
    :raises TypeError: naming the argument and its value
    """
    parameters = constructor_parameters(cls)[0]
    for name, value in arguments.items():
        flag = name in parameters and parameters[name].annotation in ("bool", bool)
        if flag and not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}={value!r}: True or False is needed")
