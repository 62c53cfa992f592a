"""Which settings a run has: the signature's defaults, under the tuned ones of ``zoo_configs``, under the typed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.provenance import versions
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds
from sb3_pg_ext.experiments.values import SettingError, merge, suggestion
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.experiments.zoo_configs import zoo_config
from sb3_pg_ext.spec import AlgorithmSpec

ENVIRONMENT_KEYS = ("n_envs", "normalize", "env_wrapper", "frame_stack")
NOISE_KEYS = ("noise_type", "noise_std")
# Arguments of every constructor that a command sets by options of its own.
OPTIONS = {"seed": "--seed", "verbose": "--verbose", "tensorboard_log": "-tb", "env": "--env"}


def resolve(
    variant: Variant,
    env_id: str,
    *,
    seeds: Seeds,
    total_steps: int,
    protocol: Protocol,
    replicate: int = 0,
    n_envs: int | None = None,
    around: Mapping[str, Any] | None = None,
    vec_env: str = "dummy",
    env_kwargs: Mapping[str, Any] | None = None,
    use_zoo_config: bool = True,
    device: str = "cpu",
) -> RunSpec:
    """The complete description of one run.

    :param variant: algorithm and typed settings
    :param env_id: environment id
    :param seeds: of training, evaluation and test
    :param total_steps: environment steps, summed over all copies
    :param protocol: how the run is judged
    :param replicate: number of the run within a study
    :param n_envs: number of copies; an ``n_envs`` of the variant wins over it, and it wins over ``zoo_configs``
    :param around: the other :data:`ENVIRONMENT_KEYS`, which win and lose likewise
    :param vec_env: how they run
    :param env_kwargs: passed to the environment
    :param use_zoo_config: whether to look for tuned settings
    :param device: for algorithms that take one
    :raises UnknownAlgorithmError: no such algorithm
    :raises SettingError: an argument does not exist; the message has the nearest one
    """
    spec = registry.get(variant.key)
    check_names(variant, spec)
    tuned = zoo_config(variant.key, env_id) if use_zoo_config else {}
    check_names(Variant(f"zoo_configs/{variant.key}.yml", variant.key, tuned), spec)
    settings = merge(tuned, around or {}, {} if n_envs is None else {"n_envs": n_envs}, variant.arguments)
    policy = settings.pop("policy", None)
    environment = _environment(env_id, settings, vec_env, env_kwargs or {})
    arguments = {"device": device} if "device" in spec.defaults else {}
    arguments |= {name: _like(spec.defaults.get(name), value) for name, value in settings.items()}
    defaults = {name: plain(value) for name, value in spec.defaults.items() if name not in OPTIONS}
    return RunSpec(
        label=variant.label,
        algo=variant.key,
        policy=policy,
        environment=environment,
        replicate=replicate,
        seeds=seeds,
        total_steps=total_steps,
        arguments=arguments,
        hyperparameters={**defaults, **arguments},
        protocol=protocol,
        versions=versions(spec.cls),
    )


def check_names(variant: Variant, spec: AlgorithmSpec) -> None:
    """
    :raises SettingError: the algorithm has no such argument, or a command sets it by an option; with the nearest name
    """
    noise = NOISE_KEYS if "action_noise" in spec.defaults else ()
    known = {*spec.defaults, *ENVIRONMENT_KEYS, *noise, "policy"} - set(OPTIONS)
    for name in variant.arguments:
        if name in OPTIONS:
            raise SettingError(f"{variant.label}: {name!r} is set by {OPTIONS[name]}, for all algorithms alike")
        if name not in known:
            hint = suggestion(name, known)
            listed = ", ".join(sorted(known))
            raise SettingError(f"{variant.label}: {variant.key} has no argument {name!r}. {hint} It has: {listed}")


def _environment(env_id: str, settings: dict[str, Any], vec_env: str, kwargs: Mapping[str, Any]) -> Environment:
    """Takes the keys of the environment out of ``settings``."""
    n_envs = settings.pop("n_envs", 1)
    if not isinstance(n_envs, int) or isinstance(n_envs, bool) or n_envs < 1:
        raise SettingError(f"n_envs={n_envs!r}: expected a whole number, at least 1")
    normalize = settings.pop("normalize", False)
    if not isinstance(normalize, (bool, Mapping)):
        raise SettingError(f"normalize={normalize!r}: expected true, false or dict(norm_obs=..., norm_reward=...)")
    wrappers = settings.pop("env_wrapper", None) or ()
    return Environment(
        id=env_id,
        n_envs=n_envs,
        vec_env=vec_env,
        kwargs=dict(kwargs),
        wrappers=(wrappers,) if isinstance(wrappers, str) else tuple(wrappers),
        normalize=None if normalize is False else {} if normalize is True else dict(normalize),
        frame_stack=settings.pop("frame_stack", None),
    )


def _like(default: Any, value: Any) -> Any:
    """``gamma=1`` is meant as 1.0, and must be the same run."""
    return float(value) if isinstance(default, float) and type(value) is int else value


def plain(value: Any) -> Any:
    """A default of a signature as plain data; a class or function by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
