"""What all trials of a tuning have in common; kept with the study, so that trials are only compared with their like."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from textwrap import shorten
from typing import Any, Literal, get_args

import numpy as np

from sb3_pg_ext import __version__, registry
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds, tuning_seeds
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.statistics import iqm
from sb3_pg_ext.experiments.values import SettingError, merge, suggestion
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.spec import Dimension, Space, When, check_space, nest, space_from_json, space_to_json

Aggregate = Literal["median", "iqm", "mean", "min"]
AGGREGATES: dict[Aggregate, Any] = {"median": np.median, "iqm": iqm, "mean": np.mean, "min": np.min}
_MOST_DIFFERENCES, _LONGEST_VALUE = 6, 60  # of another plan, in an error
_ABSENT = object()


@dataclass(frozen=True)
class Plan:
    """A tuning, described completely but for how trials are chosen and carried out.

    :param algo: key of the registry
    :param env_id: environment id
    :param total_steps: environment steps of each run
    :param space: the search space, as JSON
    :param seeds_per_trial: runs of each trial; all trials use the same seeds
    :param aggregate: how the runs of a trial make its value
    :param arguments: settings that are fixed: constructor arguments, ``n_envs``, ``normalize``, ``policy``
    :param every: environment steps between evaluations
    :param episodes: episodes of each evaluation
    :param deterministic: whether the mode of the policy is evaluated
    :param master_seed: from which all seeds are derived
    :param n_envs: copies of the environment; ``None`` leaves it to ``arguments``, or 1
    :param vec_env: how they run
    :param env_kwargs: passed to the environment
    """

    algo: str
    env_id: str
    total_steps: int
    space: str
    seeds_per_trial: int
    aggregate: Aggregate
    arguments: Mapping[str, Any]
    every: int
    episodes: int
    deterministic: bool
    master_seed: int
    n_envs: int | None
    vec_env: str
    env_kwargs: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, version: str | None = None) -> Plan:
        """
        :param version: of this package, by which it was written
        :raises SettingError: this version of the package has other plans
        """
        found, known = json.loads(text), {field.name for field in fields(cls)}
        unlike = [f"has {name!r}" for name in found if name not in known]
        unlike += [f"lacks {name!r}" for name in sorted(known - set(found))]
        if unlike:
            writer = f"sb3_pg_ext {version}" if version else "another version of sb3_pg_ext"
            raise SettingError(
                f"the study was begun by {writer}, and {__version__} is installed: its plan {' and '.join(unlike)}. "
                "Go on with that version, or begin another study"
            )
        return cls(**found)

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """The search space."""
        return space_from_json(self.space)

    def run(self, label: str, settings: Mapping[str, Any], replicate: int, seeds: Seeds | None = None) -> RunSpec:
        """One training run with ``settings`` over the fixed ones.

        :param seeds: those of the tuning by default
        """
        return resolve(
            Variant(label, self.algo, merge(self.arguments, settings)),
            self.env_id,
            seeds=seeds or tuning_seeds(self.master_seed, replicate),
            total_steps=self.total_steps,
            protocol=Protocol(self.every, self.episodes, self.deterministic, test_episodes=0),
            replicate=replicate,
            n_envs=self.n_envs,
            vec_env=self.vec_env,
            env_kwargs=self.env_kwargs,
            use_zoo_config=False,
        )

    def value(self, scores: Any) -> float:
        """The value of a trial whose runs have come to ``scores``."""
        return float(AGGREGATES[self.aggregate](np.asarray(scores, dtype=np.float64)))

    def differences(self, other: Plan) -> list[str]:
        """Sentences on what is not the same in ``other``, which the study was begun with; a handful at most."""
        found = list(_differences("", self._content(), other._content()))
        more = [f"{len(found) - _MOST_DIFFERENCES} more"] if len(found) > _MOST_DIFFERENCES else []
        return found[:_MOST_DIFFERENCES] + more

    def _content(self) -> dict[str, Any]:
        return {**asdict(self), "space": json.loads(self.space)}


def plan_of(attributes: Mapping[str, Any]) -> Plan:
    """
    :param attributes: those of a study
    :raises SettingError: another version of the package has begun it
    """
    return Plan.from_json(attributes["plan"], attributes.get("versions", {}).get("sb3_pg_ext"))


def _differences(name: str, mine: Any, theirs: Any) -> Iterator[str]:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys((*mine, *theirs)):
            inner = f"{name}.{key}" if name else key
            yield from _differences(inner, mine.get(key, _ABSENT), theirs.get(key, _ABSENT))
    elif mine != theirs:
        yield f"{name} is {_shown(mine)}, but was {_shown(theirs)}"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else shorten(repr(value), _LONGEST_VALUE, placeholder=" ...")


def plan_tuning(
    algo: str,
    env_id: str,
    total_steps: int,
    *,
    seeds_per_trial: int = 3,
    aggregate: Aggregate = "median",
    arguments: Mapping[str, Any] | None = None,
    space: Space | None = None,
    n_evaluations: int = 10,
    episodes: int = 20,
    deterministic: bool = True,
    master_seed: int = 0,
    n_envs: int | None = None,
    vec_env: str = "dummy",
    env_kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    """A checked :class:`Plan`.

    :param algo: key of the registry; plugins and Stable-Baselines3's own algorithms included
    :param env_id: environment id
    :param total_steps: environment steps of each run; a fraction of what the final training gets is often enough
    :param seeds_per_trial: runs of each trial
    :param aggregate: ``"median"``, ``"iqm"``, ``"mean"`` or ``"min"`` over the runs
    :param arguments: settings that are not searched; what is also in the space is taken out of it
    :param space: search space; that of the algorithm's ``SPEC`` by default
    :param n_evaluations: evaluations per run, evenly spread
    :param episodes: episodes per evaluation
    :param deterministic: evaluate the mode of the policy instead of sampled actions
    :param master_seed: from which all seeds are derived
    :param n_envs: copies of the environment
    :param vec_env: how they run: ``"dummy"``, ``"subproc"`` or ``"native"``
    :param env_kwargs: passed to the environment
    :raises SettingError: a value is not allowed, or the algorithm has nothing to search
    :raises UnknownAlgorithmError: no such algorithm
    """
    _check_whole(
        total_steps=total_steps, seeds_per_trial=seeds_per_trial, n_evaluations=n_evaluations, episodes=episodes
    )
    if aggregate not in AGGREGATES:
        raise SettingError(f"aggregate={aggregate!r}: allowed are {', '.join(map(repr, get_args(Aggregate)))}")
    spec = registry.get(algo)
    searched = _without_fixed(spec.space if space is None else space, arguments or {})
    if not searched:
        raise SettingError(f"{algo} has nothing to search: its space is empty, or all of it is fixed")
    unknown = [name for name in searched if name.split(".")[0] not in spec.defaults]
    if unknown:
        hint = suggestion(unknown[0], spec.defaults)
        raise SettingError(f"the search space has {unknown[0]!r}, which is no argument of {algo}. {hint}")
    plan = Plan(
        algo=algo,
        env_id=env_id,
        total_steps=total_steps,
        space=space_to_json(searched),
        seeds_per_trial=seeds_per_trial,
        aggregate=aggregate,
        arguments=dict(arguments or {}),
        every=math.ceil(total_steps / n_evaluations),
        episodes=episodes,
        deterministic=deterministic,
        master_seed=master_seed,
        n_envs=n_envs,
        vec_env=vec_env,
        env_kwargs=dict(env_kwargs or {}),
    )
    return Plan.from_json(plan.to_json())  # as it comes back from the storage


def _check_whole(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SettingError(f"{name}={value!r}: expected a whole number, at least 1")


def _without_fixed(space: Space, arguments: Mapping[str, Any]) -> dict[str, Dimension]:
    """The part of ``space`` that ``arguments`` leave open; conditions on what they fix are settled.

    :raises SettingError: a condition could never hold
    """
    fixed = {name: found for name in space if (found := _given(arguments, name.split("."))) is not None}
    kept: dict[str, Dimension] = {}
    for name, dimension in space.items():
        if name in fixed:
            continue
        if isinstance(dimension, When) and dimension.name in fixed:
            if fixed[dimension.name][0] in dimension.values:
                kept[name] = dimension.dimension
        elif not isinstance(dimension, When) or dimension.name in kept:
            kept[name] = dimension
    try:
        check_space(kept)
        nest(dict.fromkeys(kept))
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"search space: {error}") from None
    return kept


def _given(arguments: Mapping[str, Any], path: list[str]) -> tuple[Any] | None:
    """The value under a dotted name, in a tuple since it may be None; ``None`` if there is none."""
    head, *rest = path
    if head not in arguments:
        return None
    if not rest:
        return (arguments[head],)
    return _given(arguments[head], rest) if isinstance(arguments[head], Mapping) else None
