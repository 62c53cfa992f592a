"""Studies as YAML files: read with errors that name line and key, and written.

::

    algorithms:                      # as on the command line, or with key, name, overrides
      - reinforce
      - reinforce:baseline=mean
      - {key: ppo, name: small, overrides: {n_steps: 64, policy_kwargs.net_arch: [32, 32]}}
      - {key: sac, environments: [Pendulum-v1]}
    environments:                    # ids, or tables
      - CartPole-v1
      - id: Pendulum-v1
        n_timesteps: 1e5
        normalize: {norm_reward: false}
        reference: {low: -1200, high: -150}
    seeds: 5
    n_timesteps: 5e4
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.building import check_env_id, wrapper_class
from sb3_pg_ext.experiments.located_yaml import Part, read_yaml
from sb3_pg_ext.experiments.results import Reference
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.settings import check_names
from sb3_pg_ext.experiments.study import MAX_MASTER_SEED, MAX_SEEDS, MAX_STEPS, Problem, Study
from sb3_pg_ext.experiments.values import as_text, merge
from sb3_pg_ext.experiments.variants import Variant, read_variant
from sb3_pg_ext.spec import nest

FILE_NAME = "study.yml"
N_SEEDS, N_EVALUATIONS, EPISODES, TEST_EPISODES = 5, 20, 20, 100
VEC_ENVS = ("dummy", "subproc", "native")

_STUDY = (
    "folder",
    "algorithms",
    "environments",
    "seeds",
    "n_timesteps",
    "evaluation",
    "zoo_config",
    "master_seed",
    "jobs",
)
_ALGORITHM = ("key", "name", "overrides", "environments")
_ENVIRONMENT = (
    "id",
    "kwargs",
    "wrappers",
    "normalize",
    "frame_stack",
    "n_envs",
    "vec_env",
    "n_timesteps",
    "evaluation",
    "reference",
)
_EVALUATION = ("n_evaluations", "frequency", "episodes", "deterministic", "test_episodes")


@dataclass(frozen=True)
class StudyFile:
    """What a file says.

    :param path: of the file
    :param text: its content
    :param folder: where the results are to be kept; ``None`` if it does not say
    :param jobs: how many runs at once; ``None`` if it does not say
    :param lines: label of each algorithm and id of each environment -> the line where it is
    """

    path: Path
    text: str
    study: Study
    folder: Path | None
    jobs: int | None
    lines: Mapping[str, int]

    def place(self, run: RunSpec) -> str:
        """Where a run comes from, to begin an error with."""
        algorithm, environment = self.lines[run.label], self.lines[run.environment.id]
        return f"{self.path}, line {algorithm} (in the environment of line {environment}): "


def read_study(path: Path) -> StudyFile:
    """Read and check a file; nothing is built, and nothing in it is executed.

    :raises FileNotFoundError: there is none
    :raises SettingError: it is no study; the message has line, key and the nearest known key
    """
    whole = read_yaml(path)
    parts = whole.table(_STUDY, required=("algorithms", "environments"))
    lines: dict[str, int] = {}
    variants = [_named(part, _variant(part), "label", lines) for part in parts["algorithms"].items()]
    problems = [_named(part, _problem(part, parts), "env_id", lines) for part in parts["environments"].items()]
    _check_environments(parts["algorithms"], [problem.env_id for problem in problems])
    _check_use(parts["environments"], problems, variants)
    study = Study(
        variants,
        problems,
        n_seeds=parts["seeds"].whole(1, MAX_SEEDS) if "seeds" in parts else N_SEEDS,
        master_seed=parts["master_seed"].whole(0, MAX_MASTER_SEED) if "master_seed" in parts else 0,
        use_zoo_configs=parts["zoo_config"].flag() if "zoo_config" in parts else True,
    )
    with parts["algorithms"].blamed():
        study.runs()
    return StudyFile(
        path,
        path.read_text(encoding="utf-8"),
        study,
        folder=Path(parts["folder"].text()) if "folder" in parts else None,
        jobs=parts["jobs"].whole(1) if "jobs" in parts else None,
        lines=lines,
    )


def _named(part: Part, made: Any, attribute: str, lines: dict[str, int]) -> Any:
    """``made``, with its name entered into ``lines``."""
    name = getattr(made, attribute)
    if name in lines:
        what = "the same environment" if attribute == "env_id" else f"the label {name!r}"
        raise part.error(f"{what} is in line {lines[name]} already; {_WAY_OUT[attribute]}")
    lines[name] = part.line
    return made


_WAY_OUT = {
    "label": "give this one a name of its own: name: ...",
    "env_id": "other arguments or wrappers for it need a study of their own",
}


# --- algorithms


def _variant(part: Part) -> Variant:
    if not part.is_table:
        with part.blamed():
            variant = read_variant(part.text())
        _check(part, variant)
        return variant
    parts = part.table(_ALGORITHM, required=("key",))
    key = parts["key"].text()
    name = parts["name"].text() if "name" in parts else key
    _check(parts["key"], Variant(name, key))
    overrides = parts["overrides"].entries() if "overrides" in parts else {}
    given: dict[str, Any] = {}
    for argument, override in overrides.items():
        _check(override, Variant(name, key, {argument.partition(".")[0]: None}))
        with override.blamed():
            given = merge(given, nest({argument: override.plain()}))
    text = ",".join(f"{argument}={as_text(value)}" for argument, value in given.items())
    label = name if "name" in parts or not text else f"{key}:{text}"
    environments = tuple(env.text() for env in parts["environments"].items()) if "environments" in parts else None
    return Variant(label, key, given, environments)


def _check_environments(algorithms: Part, env_ids: list[str]) -> None:
    for algorithm in (part for part in algorithms.items() if part.is_table):
        named = algorithm.table(_ALGORITHM, required=("key",)).get("environments")
        lines: dict[str, int] = {}
        for env in named.items() if named else []:
            if env.text() not in env_ids:
                raise env.error(f"{env.text()!r} is none of the environments of the study: {', '.join(env_ids)}")
            if env.text() in lines:
                raise env.error(f"{env.text()!r} is in line {lines[env.text()]} already: once is enough")
            lines[env.text()] = env.line


def _check_use(environments: Part, problems: Sequence[Problem], variants: Sequence[Variant]) -> None:
    for part, problem in zip(environments.items(), problems, strict=True):
        if not any(variant.runs_in(problem.env_id) for variant in variants):
            raise part.error(f"no algorithm runs in {problem.env_id!r}: each has environments of its own, without it")


def _check(part: Part, variant: Variant) -> None:
    with part.blamed():
        check_names(variant, registry.get(variant.key))


# --- environments


def _problem(part: Part, study: Mapping[str, Part]) -> Problem:
    parts = part.table(_ENVIRONMENT, required=("id",)) if part.is_table else {"id": part}
    env_id = _env_id(parts["id"])
    steps = parts.get("n_timesteps", study.get("n_timesteps"))
    if steps is None:
        raise part.error("n_timesteps is given neither for this environment nor for the whole study")
    total_steps = steps.whole(1, MAX_STEPS)
    vec_env = parts["vec_env"].text() if "vec_env" in parts else "dummy"
    if vec_env not in VEC_ENVS:
        raise parts["vec_env"].error(f"{vec_env!r}: allowed are {', '.join(VEC_ENVS)}")
    return Problem(
        env_id,
        total_steps,
        _protocol(parts.get("evaluation", study.get("evaluation")), total_steps),
        kwargs={name: kwarg.plain() for name, kwarg in parts["kwargs"].entries().items()} if "kwargs" in parts else {},
        around=_around(parts),
        vec_env=vec_env,
        reference=_reference(parts["reference"]) if "reference" in parts else None,
    )


def _env_id(part: Part) -> str:
    with part.blamed():
        check_env_id(part.text())
    return part.text()


def _around(parts: Mapping[str, Part]) -> dict[str, Any]:
    """What is around the environment, by the names that ``zoo_configs`` has for it."""
    around: dict[str, Any] = {name: parts[name].whole(1) for name in ("n_envs", "frame_stack") if name in parts}
    if "wrappers" in parts:
        around["env_wrapper"] = _wrappers(parts["wrappers"])
    if "normalize" in parts:
        around["normalize"] = _normalize(parts["normalize"])
    return around


def _wrappers(part: Part) -> list[str]:
    if part.is_list and not part.node.value:
        return []
    names = part.items() if part.is_list else [part]
    for name in names:
        with name.blamed():
            wrapper_class(name.text())
    return [name.text() for name in names]


def _normalize(part: Part) -> bool | dict[str, Any]:
    if not part.is_table:
        return part.flag()
    known = [name for name in inspect.signature(VecNormalize).parameters if name not in ("venv", "training")]
    return {name: argument.plain() for name, argument in part.table(known).items()}


def _reference(part: Part) -> Reference:
    parts = part.table(Reference._fields, required=Reference._fields)
    low, high = parts["low"].number(), parts["high"].number()
    if not low < high:
        raise part.error(f"low={low} is not below high={high}")
    return Reference(low, high)


def _protocol(part: Part | None, total_steps: int) -> Protocol:
    parts = {} if part is None else part.table(_EVALUATION)
    if "frequency" in parts and "n_evaluations" in parts:
        raise parts["frequency"].error("n_evaluations is given as well: one of them says the other")
    n_evaluations = parts["n_evaluations"].whole(1) if "n_evaluations" in parts else N_EVALUATIONS
    return Protocol(
        parts["frequency"].whole(1) if "frequency" in parts else math.ceil(total_steps / n_evaluations),
        parts["episodes"].whole(1) if "episodes" in parts else EPISODES,
        parts["deterministic"].flag() if "deterministic" in parts else True,
        parts["test_episodes"].whole(0) if "test_episodes" in parts else TEST_EPISODES,
    )


# --- writing


def study_text(study: Study) -> str:
    """A study as the text of a file; :func:`read_study` gives it back."""
    content = {
        "algorithms": [_algorithm_entry(variant) for variant in study.variants],
        "environments": [_environment_entry(problem) for problem in study.problems],
        "seeds": study.n_seeds,
        "master_seed": study.master_seed,
        "zoo_config": study.use_zoo_configs,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _algorithm_entry(variant: Variant) -> dict[str, Any]:
    overrides = {name: _readable(value) for name, value in variant.arguments.items()}
    return {
        "key": variant.key,
        "name": variant.label,
        **({"overrides": overrides} if overrides else {}),
        **({"environments": list(variant.environments)} if variant.environments is not None else {}),
    }


def _environment_entry(problem: Problem) -> dict[str, Any]:
    around = {"wrappers" if name == "env_wrapper" else name: value for name, value in problem.around.items()}
    protocol = problem.protocol
    return {
        "id": problem.env_id,
        **({"kwargs": {name: _readable(value) for name, value in problem.kwargs.items()}} if problem.kwargs else {}),
        **around,
        "vec_env": problem.vec_env,
        "n_timesteps": problem.total_steps,
        "evaluation": {
            "frequency": protocol.every,
            "episodes": protocol.episodes,
            "deterministic": protocol.deterministic,
            "test_episodes": protocol.test_episodes,
        },
        **({"reference": problem.reference._asdict()} if problem.reference else {}),
    }


def _readable(value: Any) -> Any:
    """Text that would be read as something else gets quotes of its own."""
    if isinstance(value, Mapping):
        return {name: _readable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return as_text(value) if isinstance(value, str) else value
