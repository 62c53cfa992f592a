"""Search spaces as rl_zoo3 wants them: a function that samples, and one that reads a stored trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sb3_pg_ext.experiments.values import materialise
from sb3_pg_ext.spec import AlgorithmSpec, Trial, suggest

Sampler = Callable[[Any, int, int, dict[str, Any]], dict[str, Any]]
Converter = Callable[[Mapping[str, Any]], dict[str, Any]]


def sampler(spec: AlgorithmSpec) -> Sampler:
    """An entry of rl_zoo3's ``HYPERPARAMS_SAMPLER``."""
    return partial(_sample, spec)


def converter(spec: AlgorithmSpec) -> Converter:
    """An entry of rl_zoo3's ``HYPERPARAMS_CONVERTER``."""
    return partial(_convert, spec)


def _sample(
    spec: AlgorithmSpec, trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample constructor arguments, and note them in the trial: it stores 1 - gamma and exponents, they are the values.

    :param n_actions: numbers per action; unused, as are ``n_envs`` and ``additional_args``
    """
    sampled = _arguments(spec, trial)
    for name, value in sampled.items():
        trial.set_user_attr(name, value)
    return materialise(sampled)


def _convert(spec: AlgorithmSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments of a trial with these ``params``."""
    from optuna.trial import FixedTrial

    return materialise(_arguments(spec, FixedTrial(dict(params))))


def _arguments(spec: AlgorithmSpec, trial: Trial) -> dict[str, Any]:
    """What :func:`~sb3_pg_ext.spec.suggest` samples, and the defaults of those arguments that it leaves out.

    rl_zoo3 lays a trial over the settings of the environment. A conditional argument of theirs would stay below a trial
    in which its condition does not hold.
    """
    inactive = {name: spec.defaults[name] for name in spec.space if name in spec.defaults}
    return {**inactive, **suggest(spec.space, trial)}
