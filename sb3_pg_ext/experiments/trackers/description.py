"""What a tracker is told of a run when it begins: settings, tags and provenance, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import FloatSchedule

from sb3_pg_ext.experiments.provenance import provenance, versions
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.settings import OPTIONS, plain
from sb3_pg_ext.spec import constructor_parameters

_NO_SETTINGS = {"self", "env", "policy", "device", "_init_setup_model", *OPTIONS}


@dataclass(frozen=True)
class Description:
    """A run, as a tracker lists it.

    :param name: of the run; ``None`` leaves it to the tracker
    :param group: runs that belong together, such as those of a study
    :param hyperparameters: of algorithm and environment
    :param tags: by which runs are found
    :param provenance: versions, commit, machine and command
    """

    name: str | None = None
    group: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def describe_run(spec: RunSpec, study: str | None, folder: str, command: str) -> Description:
    """A run of a command.

    :param study: that it belongs to
    :param folder: of the study
    :param command: that was typed; the process of a worker has another
    """
    environment = spec.environment
    settings = {
        **spec.hyperparameters,
        "algo": spec.algo,
        "policy": spec.policy,
        "env": environment.id,
        "n_envs": environment.n_envs,
        "vec_env": environment.vec_env,
        "env_kwargs": dict(environment.kwargs),
        "env_wrapper": list(environment.wrappers),
        "normalize": None if environment.normalize is None else {"norm_obs": True, **environment.normalize},
        "frame_stack": environment.frame_stack,
        "n_timesteps": spec.total_steps,
        "seed": spec.seeds.train,
    }
    tags = {"label": spec.label, "algo": spec.algo, "env": environment.id, "seed": str(spec.replicate), "key": spec.key}
    tags |= {"folder": folder} if study is None else {"folder": folder, "study": study}
    circumstances = {**provenance(), "command": command, "versions": dict(spec.versions)}
    return Description(f"{spec.label}/{environment.id}/seed{spec.replicate}", study, settings, tags, circumstances)


def describe_model(model: BaseAlgorithm) -> Description:
    """A model that somebody has made by hand: its constructor's arguments as they are now."""
    cls = type(model)
    names = [name for name in constructor_parameters(cls)[0] if name not in _NO_SETTINGS and hasattr(model, name)]
    settings = {name: _plain_setting(getattr(model, name)) for name in names}
    env_id = _env_id(model)
    settings |= {"algo": cls.__name__, "policy": type(model.policy).__name__, "env": env_id, "n_envs": model.n_envs}
    settings["seed"] = model.seed
    tags = {"algo": cls.__name__, "env": env_id, "seed": str(model.seed)}
    return Description(hyperparameters=settings, tags=tags, provenance={**provenance(), "versions": versions(cls)})


def _plain_setting(value: Any) -> Any:
    # Stable-Baselines3 makes constants into schedules; here they are numbers again.
    if isinstance(value, FloatSchedule) and value(1.0) == value(0.5) == value(0.0):
        return value(1.0)
    return plain(value)


def _env_id(model: BaseAlgorithm) -> str:
    """The id of the environment, as far as it tells."""
    env = model.get_env()
    assert env is not None  # learn() has refused it
    try:
        return str(env.get_attr("spec", [0])[0].id)
    except (AttributeError, IndexError, NotImplementedError):  # no gymnasium.Env inside, or one that nobody registered
        return type(env.unwrapped).__name__


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested tables as one, with dots in the names; what is no number is a text, and ``None`` is left out."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
