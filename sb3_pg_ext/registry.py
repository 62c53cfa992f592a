"""One registry for every algorithm: our own, Stable-Baselines3's, sb3-contrib's and other packages'.

* Our own and upstream's: every module of ``sb3_pg_ext.algorithms`` is an entry; the file name is its key.
* Other packages: an entry point in the group ``sb3_pg_ext.algorithms``, ``key = "module:SPEC"``.
* At run time: :func:`register`.

Entries load when they are asked for, and a key can be taken only once.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from gymnasium import spaces

from sb3_pg_ext.spec import ALL_ACTION_SPACES, ALL_FAMILIES, ActionSpaceName, AlgorithmSpec, Family

ENTRY_POINT_GROUP = "sb3_pg_ext.algorithms"
_OWN_PACKAGE = "sb3_pg_ext.algorithms"


@dataclass(frozen=True)
class Entry:
    """Where an algorithm comes from, and how to load its SPEC."""

    key: str
    origin: str
    load: Callable[[], AlgorithmSpec]


class RegistryClashError(ValueError):
    """Two sources claim the same key."""


class UnknownAlgorithmError(KeyError):
    """No algorithm has this key."""

    def __init__(self, key: str, known: list[str]):
        # Both arguments reach KeyError, so that the error survives the pickling between worker processes.
        super().__init__(key, known)
        self.key, self.known = key, known

    def __str__(self) -> str:
        nearest = difflib.get_close_matches(str(self.key).lower(), self.known, n=1, cutoff=0.5)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        return f"Unknown algorithm {self.key!r}.{hint} Available: {', '.join(self.known)}"


_registered: dict[str, Entry] = {}
_specs: dict[str, AlgorithmSpec] = {}


def _own_spec(name: str) -> AlgorithmSpec:
    return importlib.import_module(f"{_OWN_PACKAGE}.{name}").SPEC


def _own_entries() -> dict[str, Entry]:
    folder = str(Path(__file__).parent / "algorithms")
    names = [module.name for module in pkgutil.iter_modules([folder]) if not module.ispkg]
    return {name: Entry(name, f"{_OWN_PACKAGE}.{name}", partial(_own_spec, name)) for name in names if name[0] != "_"}


def own_class(name: str) -> type:
    """The class of one of this package's algorithm files by its own name, such as ``"REINFORCE"`` or ``"SVGInf"``.

    :raises KeyError: there is none
    """
    for key in _own_entries():
        if key.replace("_", "") == name.lower() and get(key).cls.__name__ == name:
            return get(key).cls
    raise KeyError(name)


def _plugin_entry(point: EntryPoint) -> Entry:
    distribution = point.dist.name if point.dist is not None else "an unnamed distribution"
    return Entry(point.name, f"{distribution} ({point.value})", point.load)


@cache
def _discovered() -> dict[str, Entry]:
    found = _own_entries()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        _claim(found, _plugin_entry(point))
    return found


def _claim(taken: dict[str, Entry], entry: Entry) -> None:
    other = taken.get(entry.key)
    if other is not None and other.origin != entry.origin:
        raise RegistryClashError(
            f"The algorithm key {entry.key!r} is claimed by both {other.origin} and {entry.origin}: "
            "uninstall one of them, or give one another key."
        )
    taken[entry.key] = entry


def _entries() -> dict[str, Entry]:
    entries = dict(_discovered())
    for entry in _registered.values():
        _claim(entries, entry)
    return entries


def refresh() -> None:
    """Look for installed plug-ins again (after a ``pip install`` in the same process)."""
    importlib.invalidate_caches()
    _discovered.cache_clear()
    _specs.clear()


def _check_key(key: str) -> None:
    if not (isinstance(key, str) and re.fullmatch(r"[a-z][a-z0-9_]*", key)):
        raise ValueError(f"key={key!r}: an algorithm key is lower snake case, such as 'svg_inf'")


def register(key: str, spec: AlgorithmSpec) -> None:
    """Add an algorithm for this process; installed packages use the entry point instead.

    The same class (by module and name) may register again and then replaces its SPEC: a notebook cell can be run twice.

    :param key: how it is named in :func:`make`, on the command line and in ``zoo_configs``; lower snake case
    :param spec: its record
    :raises RegistryClashError: another source has the key
    :raises ValueError: the key is not lower snake case
    :raises TypeError: ``spec`` is not an :class:`AlgorithmSpec`
    """
    _check_key(key)
    if not isinstance(spec, AlgorithmSpec):
        raise TypeError(f"spec={spec!r} of {key!r} must be an AlgorithmSpec")
    entry = Entry(key, f"register() of {spec.cls.__module__}.{spec.cls.__qualname__}", lambda: spec)
    _claim(_entries(), entry)
    _registered[key] = entry
    _specs.pop(key, None)


def keys() -> list[str]:
    """All keys, sorted, without loading any algorithm."""
    return sorted(_entries())


def get(key: str) -> AlgorithmSpec:
    """The SPEC of an algorithm.

    :param key: as listed by :func:`keys`
    :raises UnknownAlgorithmError: no such key; the message lists what exists and the nearest match
    :raises ImportError: the plug-in exists but cannot be loaded; the message names it
    """
    if key not in _specs:
        entries = _entries()
        if key not in entries:
            raise UnknownAlgorithmError(key, sorted(entries))
        _specs[key] = _load(entries[key])
    return _specs[key]


def _load(entry: Entry) -> AlgorithmSpec:
    name = f"The algorithm {entry.key!r} of {entry.origin}"
    try:
        _check_key(entry.key)
        spec = entry.load()
    except Exception as error:
        raise ImportError(f"{name} cannot be loaded: {error!r}") from error
    if not isinstance(spec, AlgorithmSpec):
        raise ImportError(f"{name} is a {type(spec).__name__}, not an AlgorithmSpec")
    return spec


def available(
    family: Family | None = None, action_space: ActionSpaceName | spaces.Space | None = None
) -> dict[str, AlgorithmSpec]:
    """Key -> SPEC of every algorithm that loads, optionally filtered.

    A plug-in that does not load is left out with a warning that names it.

    :param family: ``"on_policy"``, ``"off_policy"``, ``"policy_search"`` or ``"model_based"``
    :param action_space: a gymnasium action space or the name of its class
    :raises ValueError: a name that is not one of these
    """
    if family is not None and family not in ALL_FAMILIES:
        raise ValueError(f"family={family!r}: allowed are {ALL_FAMILIES}")
    if isinstance(action_space, str) and action_space not in ALL_ACTION_SPACES:
        raise ValueError(f"action_space={action_space!r}: allowed are {ALL_ACTION_SPACES} or a gymnasium space")
    found = {}
    for key in keys():
        spec = _get_or_warn(key)
        if spec is None or (family is not None and spec.family != family):
            continue
        if action_space is None or _accepts(spec, action_space):
            found[key] = spec
    return found


def _get_or_warn(key: str) -> AlgorithmSpec | None:
    try:
        return get(key)
    except ImportError as error:
        warnings.warn(str(error), UserWarning, stacklevel=3)
        return None


def _accepts(spec: AlgorithmSpec, action_space: str | spaces.Space) -> bool:
    if isinstance(action_space, str):
        return action_space in spec.action_spaces
    return isinstance(action_space, tuple(getattr(spaces, name) for name in spec.action_spaces))


def key_of(cls: type) -> str:
    """The key under which ``cls`` is registered.

    :raises UnknownAlgorithmError: it is not registered
    """
    file_name = cls.__module__.rpartition(".")[2]
    for key in sorted(keys(), key=lambda key: key != file_name):  # most often the first, and the others stay unloaded
        spec = _get_or_warn(key)
        if spec is not None and spec.cls is cls:
            return key
    raise UnknownAlgorithmError(cls.__name__, keys())


def make(key: str, env: Any, policy: Any = None, *, n_envs: int | None = None, **kwargs: Any) -> Any:
    """Construct an algorithm by its key.

    >>> model = make("reinforce", "CartPole-v1", n_envs=8, seed=0).learn(20_000)  # doctest: +SKIP

    :param key: as listed by :func:`keys`
    :param env: an environment id, a gymnasium env, an SB3 ``VecEnv`` or a gymnasium ``VectorEnv``
    :param policy: policy name or class; ``None`` chooses by the observation space (images and Dicts have their own)
    :param n_envs: with an id only: how many copies (monitored, in a DummyVecEnv); one if not given
    :param kwargs: the constructor's own arguments
    """
    from sb3_pg_ext.rollout.vector_env import as_vec_env

    spec = get(key)
    env = as_vec_env(env, n_envs=n_envs, seed=kwargs.get("seed"))
    return spec.cls(policy or default_policy(spec, env.observation_space), env, **kwargs)


def default_policy(spec: AlgorithmSpec, observation_space: spaces.Space) -> str:
    """The first of ``spec.policies`` that is meant for the observation space, or simply the first.

    ``CnnPolicy`` and ``CnnLstmPolicy`` are meant for images, ``MultiInput...`` for Dict observations.
    """
    from stable_baselines3.common.preprocessing import is_image_space

    if isinstance(observation_space, spaces.Dict):
        prefix = "MultiInput"
    else:
        prefix = "Cnn" if is_image_space(observation_space) else ""
    return next((policy for policy in spec.policies if policy.startswith(prefix)), spec.policies[0])


def load(path: Any, env: Any = None, *, trusted: bool = False, **kwargs: Any) -> Any:
    """Load a saved model of any registered algorithm; its class is found from the file.

    Nothing in the file is executed unless ``trusted=True``.

    :param path: the zip file, with or without the suffix
    :param env: as in :func:`make`; may be left out for prediction
    :param trusted: unpickle everything in the file; only for files from a source that you trust
    :param kwargs: as for the class's own ``load``
    :raises UnsafeModelError: the file holds a pickled object that is not on the list of harmless ones
    """
    from sb3_pg_ext.bases.model_file import identify, load_model
    from sb3_pg_ext.rollout.vector_env import as_vec_env

    spec = get(identify(path, keys(), available))
    return load_model(spec.cls, path, env=None if env is None else as_vec_env(env), trusted=trusted, **kwargs)
