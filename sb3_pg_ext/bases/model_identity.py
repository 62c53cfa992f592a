"""Which algorithm a model file belongs to, which classes may load it, and what they may replace in it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import gymnasium as gym
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_pg_ext
from sb3_pg_ext.bases.model_archive import ModelFileError, ModelPath, opened, read_documents, source_of
from sb3_pg_ext.bases.options import check_flags, unknown_argument
from sb3_pg_ext.spec import AlgorithmSpec, constructor_parameters

_LOAD_ANY = "sb3_pg_ext.load(path) finds the class of any model"
_NOT_STORED = {"self", "policy", "env", "device", "stats_window_size", "_init_setup_model"}
#: Arguments that say where a model runs and what it tells, and nothing of what it learns.
_AROUND = {"self", "policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model"}
_MOST_COPIES = 10_000  # of an environment that a file is believed to have been trained in


def identity_of(cls: type) -> dict[str, Any]:
    """What ``sb3_pg_ext.json`` says of a model of class ``cls``."""
    package, _, module = cls.__module__.rpartition(".")
    spec = getattr(sys.modules[cls.__module__], "SPEC", None)
    own = package == "sb3_pg_ext.algorithms" and spec is not None and spec.cls is cls
    return {
        "class": _name_of(cls),
        "parents": [_name_of(parent) for parent in _algorithms(cls)[1:]],
        "key": module if own else None,
        "sb3_pg_ext": sb3_pg_ext.__version__,
    }


def _algorithms(cls: type) -> list[type]:
    """``cls`` and its parents, as far as they are algorithms."""
    return [c for c in cls.__mro__ if issubclass(c, BaseAlgorithm) and c is not BaseAlgorithm]


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def check_class(cls: type[BaseAlgorithm], identity: Mapping[str, Any] | None, source: str) -> None:
    """A class loads its own files, and those of its parents and children; one that has moved is still the same.

    :param identity: what ``sb3_pg_ext.json`` says; None if the file has none, like those of the classes that save in
        the stock way
    :raises ModelFileError: the file is one of another class
    """
    if identity is None:
        if cls.save is not BaseAlgorithm.save:
            raise ModelFileError(
                f"{source} does not say which class wrote it, and {cls.__name__} would: it is no model of "
                f"{cls.__name__}. {_LOAD_ANY}"
            )
        return
    parents = identity.get("parents")
    written_by = [identity.get("class"), *(parents if isinstance(parents, list) else [])]
    readable = {_short(_name_of(c)) for c in _algorithms(cls)}
    if _short(written_by[0]) not in readable and _short(_name_of(cls)) not in map(_short, written_by):
        raise ModelFileError(
            f"{source} holds a model of {_short(written_by[0])}, not of {cls.__name__}. {_LOAD_ANY}, and "
            f"{_short(written_by[0])}.load(path) loads this one."
        )


def _short(name: Any) -> str:
    """The class's own name in ``module:Outer.Name``."""
    return str(name).rpartition(":")[2].rpartition(".")[2]


def check_replacements(cls: type[BaseAlgorithm], replacements: Mapping[str, Any], stored: Collection[str]) -> None:
    """What ``load(..., name=value)`` sets must be a constructor argument or an attribute.

    :param stored: names of the attributes in the file
    :raises TypeError: it is neither; or it is no bool where the constructor wants one
    """
    known = [name for name in constructor_parameters(cls)[0] if name != "self"]
    for name in replacements.keys() - {*known, *stored}:
        policy = next(iter(cls.policy_aliases.values()), BasePolicy)
        bare: Any = cls(policy, None, _init_setup_model=False)  # type: ignore[call-arg]
        if not hasattr(bare, name):
            raise unknown_argument(f"{cls.__name__}.load", name, known)
    check_flags(cls, replacements)


def check_values(
    cls: type[BaseAlgorithm], replacements: Mapping[str, Any], stored: Mapping[str, Any], n_envs: int | None = None
) -> None:
    """What ``load(..., name=value)`` sets must be what the constructor takes together with the arguments in the file.

    :param stored: the attributes in the file
    :param n_envs: of the environment that comes in place of the one in training
    :raises ValueError: the constructor refuses it; so with any other exception of the constructor
    """
    names = constructor_parameters(cls)[0].keys() - _AROUND
    replaced = {name: value for name, value in replacements.items() if name in names}
    kept = {name: stored[name] for name in names & stored.keys()}
    if not replaced or "policy_class" not in stored:
        return
    for env in (None, _stand_in(stored, n_envs)):  # some look at a part of the arguments only if there is one
        try:
            _construct(cls, stored["policy_class"], env, {**kept, **replaced})
        except Exception:
            if _is_taken(cls, stored["policy_class"], env, kept):
                raise
            # The file holds what no constructor takes any more: nothing is known of what would replace a part of it.


def _stand_in(stored: Mapping[str, Any], n_envs: int | None) -> DummyVecEnv | None:
    """An environment for constructors to look at, which cannot be stepped."""

    def one() -> gym.Env:
        env: gym.Env = gym.Env()
        env.observation_space, env.action_space = stored["observation_space"], stored["action_space"]
        return env

    copies = stored.get("n_envs", 1) if n_envs is None else n_envs
    known = {"observation_space", "action_space"} <= stored.keys() and copies in range(1, _MOST_COPIES + 1)
    return DummyVecEnv([one] * copies) if known else None


def _is_taken(cls: type[BaseAlgorithm], policy: Any, env: DummyVecEnv | None, arguments: Mapping[str, Any]) -> bool:
    try:
        _construct(cls, policy, env, arguments)
    except Exception:
        return False
    return True


def _construct(cls: type[BaseAlgorithm], policy: Any, env: DummyVecEnv | None, arguments: Mapping[str, Any]) -> None:
    """As a model is constructed that will get its parameters from a file.

    Dicts are copied: some constructors write into them.
    """
    own: dict[str, Any] = {name: dict(value) if type(value) is dict else value for name, value in arguments.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the replay buffer, for one, which was chosen when the model was set up
        cls(policy=policy, env=env, _init_setup_model=False, **own)  # type: ignore[call-arg]


def identify(path: ModelPath, keys: Collection[str], specs: Callable[[], Mapping[str, AlgorithmSpec]]) -> str:
    """The registry key of the algorithm that wrote a file, found without unpickling anything.

    Our own files say it. Those of Stable-Baselines3 and sb3-contrib do not; there the modules of the policy and of the
    rollout buffer and the names of the fields are compared with every registered class that saves in the stock way.

    :param path: name with or without ``.zip``, or a file object, whose position is kept
    :param keys: those that are registered
    :param specs: loads all that is registered; called only if the file does not name one of ``keys``
    :raises ModelFileError: no model file, or it is not clear whose
    """
    source = source_of(path)
    with opened(path) as file:
        fields, identity = read_documents(file, source)
    if identity is None:
        return _best_match(fields, specs(), source)
    return identity["key"] if identity.get("key") in keys else _key_of_class(identity, specs(), source)


def _key_of_class(identity: Mapping[str, Any], specs: Mapping[str, AlgorithmSpec], source: str) -> str:
    for key, spec in specs.items():
        if _name_of(spec.cls) == identity.get("class"):
            return key
    raise ModelFileError(
        f"{source} was written by {identity.get('class')!r}, which is not registered here; registered are "
        f"{', '.join(specs)}. Register it, or use get(key).cls.load(path) with the key that fits."
    )


def _best_match(fields: Mapping[str, Any], specs: Mapping[str, AlgorithmSpec], source: str) -> str:
    likeness = {
        key: _likeness(spec.cls, fields)
        for key, spec in specs.items()
        if issubclass(spec.cls, BaseAlgorithm) and spec.cls.save is BaseAlgorithm.save
    }
    most = max(likeness.values(), default=None)
    best = [key for key in likeness if likeness[key] == most and likeness[key][2] > 0]
    if len(best) != 1:
        found = f"it could be {' or '.join(best)}" if best else "it is like none that is registered"
        raise ModelFileError(
            f"{source} does not say which algorithm wrote it, and {found}: use get(key).cls.load(path)"
        )
    return best[0]


def _likeness(cls: type[BaseAlgorithm], fields: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """How far a file is like one of ``cls``: by policy, by rollout buffer, by names, by values; earlier ones decide."""
    own = constructor_parameters(TD3 if cls is DDPG else cls)[0].keys() - _NOT_STORED
    policies = {policy.__module__ for policy in cls.policy_aliases.values()}
    packages = {_package(module) for module in policies}
    buffer = fields.get("rollout_buffer_class")
    # A class that takes this argument has chosen a buffer by the time that it is saved.
    impossible = "rollout_buffer_class" in own and "rollout_buffer_class" in fields and buffer is None
    return (
        _module(fields.get("policy_class")) in policies,
        (_package(_module(buffer)) in packages) - impossible,
        len(own & fields.keys()) - len(own - fields.keys()),
        not _is_other_twin(cls, fields),
    )


def _is_other_twin(cls: type, fields: Mapping[str, Any]) -> bool:
    """DDPG is stored as a TD3 with one critic, no delay and no noise on the target; is the file of the other one?"""
    if cls not in (DDPG, TD3):
        return False
    policy_kwargs = fields.get("policy_kwargs")
    critics = policy_kwargs.get("n_critics") if isinstance(policy_kwargs, dict) else None
    is_ddpg = (critics, fields.get("policy_delay"), fields.get("target_noise_clip")) == (1, 1, 0.0)
    return is_ddpg != (cls is DDPG)


def _module(value: Any) -> str:
    """The module of a stored class, which stands in the JSON beside its pickle."""
    module = value.get("__module__") if isinstance(value, dict) else None
    return module if isinstance(module, str) else ""


def _package(module: str) -> str:
    return module.rpartition(".")[0]
