"""Which policies and spaces an algorithm can do with, said before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space

Aliases = Mapping[str, type[BasePolicy]]
#: How the name of a policy begins -> which observations it is for; all others are for arrays of any kind.
PREFIXES = {"MultiInput": "Dict observations", "Cnn": "images"}


def policy_named(algorithm: str, name: str, aliases: Aliases) -> type[BasePolicy]:
    """The policy class that ``name`` stands for.

    :raises ValueError: it stands for none; the message lists those that there are
    """
    if name in aliases:
        return aliases[name]
    near = difflib.get_close_matches(name, aliases, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    prefix = _prefix(name)
    if prefix and not any(_prefix(alias) == prefix for alias in aliases):
        hint = f" {algorithm} has no policy for {PREFIXES[prefix]}."
    raise ValueError(f"policy={name!r}: allowed are {_listed(aliases)}, and policy classes.{hint}")


def check_policy_class(policy: Any, bases: Collection[type], aliases: Aliases) -> None:
    """:raises TypeError: ``policy`` is neither a name nor a class derived from one of ``bases``"""
    if isinstance(policy, str):
        return
    if not isinstance(policy, type) or not issubclass(policy, tuple(bases)):
        given = _full_name(policy) if isinstance(policy, type) else repr(policy)
        oldest = [cls for cls in bases if not any(cls is not other and issubclass(cls, other) for other in bases)]
        classes = " or ".join(dict.fromkeys(map(_full_name, oldest)))
        raise TypeError(f"policy={given}: allowed are {_listed(aliases)}, and classes derived from {classes}")


def check_policy_fits(policy: type, aliases: Aliases, policy_kwargs: Mapping[str, Any], space: spaces.Space) -> None:
    """Whether the features extractor that comes with a policy can read the observations.

    Nothing is known of other classes, or if ``policy_kwargs`` choose the extractor.

    :raises ValueError: it cannot
    """
    name = next((alias for alias, cls in aliases.items() if cls is policy), None)
    if name is None or "features_extractor_class" in policy_kwargs:
        return
    fitting = [alias for alias in aliases if _reads(alias, space, policy_kwargs)]
    if name not in fitting:
        what = PREFIXES.get(_prefix(name), "observations that are one array")
        instead = f"allowed are {_listed(fitting)}" if fitting else "this algorithm has no policy for these"
        raise ValueError(f"policy={name!r} is for {what}, not observation_space={space}: {instead}")
    for part in _parts(space):
        if isinstance(part, spaces.Box) and part.shape == ():
            raise ValueError(
                f"observation_space={space}: an observation needs an axis, and the shape () has none; "
                "wrap the environment, for example in gymnasium.wrappers.ReshapeObservation(env, (1,))"
            )


def _reads(alias: str, space: spaces.Space, policy_kwargs: Mapping[str, Any]) -> bool:
    prefix = _prefix(alias)
    if prefix == "Cnn":
        normalized = policy_kwargs.get("normalize_images") is False
        return is_image_space(space, check_channels=False, normalized_image=normalized)
    return (prefix == "MultiInput") == isinstance(space, spaces.Dict)


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """:raises ValueError: a discrete space does not count from 0, or an observation is a matrix of choices

    Stable-Baselines3 takes the former for granted, and cannot read the latter.
    """
    for kind, space in (("action", action_space), ("observation", observation_space)):
        for part in _parts(space):
            if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(part.start):
                raise ValueError(
                    f"{kind}_space={space}: Stable-Baselines3 policies count {kind}s from 0 on; "
                    f"wrap the environment in one that shifts the {kind} by {part.start}"
                )
    for part in _parts(observation_space):
        if isinstance(part, spaces.MultiDiscrete):
            check_row("observation", part)


def check_row(kind: str, space: spaces.Space) -> None:
    """:raises ValueError: the choices or bits do not stand in one row"""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) and len(space.shape) != 1:
        raise ValueError(
            f"{kind}_space={space} has shape {space.shape}: {type(space).__name__} {kind}s must stand in one row; "
            f"wrap the environment in one that flattens the {kind}"
        )


def _parts(space: spaces.Space) -> Collection[spaces.Space]:
    return space.spaces.values() if isinstance(space, spaces.Dict) else [space]


def _prefix(alias: str) -> str:
    return next((prefix for prefix in PREFIXES if alias.startswith(prefix)), "")


def _listed(aliases: Iterable[str]) -> str:
    return ", ".join(map(repr, aliases))


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
