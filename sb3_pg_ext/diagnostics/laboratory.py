"""The gradient laboratory: every claim of a SPEC, measured on every testbed that it fits.

>>> from sb3_pg_ext import registry
>>> from sb3_pg_ext.diagnostics.laboratory import measure
>>> from sb3_pg_ext.diagnostics.testbeds import testbed
>>> spec = registry.get("reinforce")
>>> found = measure("reinforce", spec, spec.claims[0], testbed("bandit"), samples=(64,), repeats=50)
>>> found.agrees
True
"""

from __future__ import annotations

import importlib
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from torch import Tensor

from sb3_pg_ext.diagnostics.estimates import ESTIMATES, Steps
from sb3_pg_ext.diagnostics.names import MIN_EPISODES, MIN_REPEATS, REPEATS, SAMPLES, TESTBED_NAMES
from sb3_pg_ext.diagnostics.statistics import Deviation, deviation, direction_deviation, towards_the_limit
from sb3_pg_ext.diagnostics.targets import TARGETS, gradient
from sb3_pg_ext.diagnostics.testbeds import Testbed, net_of, testbed
from sb3_pg_ext.spec import AlgorithmSpec, GradientClaim, Holds, constructor_parameters

#: How an option of a claim asks for what the testbed knows under the name that follows.
FROM_TESTBED = "testbed:"


@dataclass(frozen=True)
class AtSize:
    """K estimates from M episodes each.

    :param episodes: M; of searches in parameter space, as many candidates with one episode each
    :param repeats: K
    :param variance: of one estimate, summed over its components
    :param variance_error: its standard error
    :param cosine: of the angle between an estimate and the target, mean
    :param rmse: root of the mean squared distance of an estimate from the target, as a share of the target's length
    :param steps: env steps that an estimate takes
    :param seconds: of CPU time that an estimate takes, collection and update
    :param deviation: of their mean from the target; None where the claim says nothing of a finite M, or where M K
        episodes are too few to tell
    """

    episodes: int
    repeats: int
    variance: float
    variance_error: float
    cosine: float
    rmse: float
    steps: int
    seconds: float
    deviation: Deviation | None


@dataclass(frozen=True)
class Measurement:
    """One claim on one testbed.

    :param algorithm: its key in the registry
    :param claim: what was measured
    :param testbed: name of the testbed
    :param n_parameters: P
    :param target_cosine: of the angle between the target and grad J
    :param target_length: of the target, as a multiple of that of grad J
    :param gradient_length: of grad J
    :param sizes: one for each number of episodes
    :param limit: deviation in the limit of many episodes, for claims of a limit or of a direction
    """

    algorithm: str
    claim: GradientClaim
    testbed: str
    n_parameters: int
    target_cosine: float
    target_length: float
    gradient_length: float
    sizes: tuple[AtSize, ...]
    limit: Deviation | None

    @property
    def deviations(self) -> list[Deviation]:
        """All that were compared."""
        return [one for one in (*(size.deviation for size in self.sizes), self.limit) if one is not None]

    @property
    def worst(self) -> Deviation:
        """The one that is nearest to its limit, or farthest beyond it."""
        return max(self.deviations, key=lambda one: (one.forward is False, one.largest / one.limit))

    @property
    def agrees(self) -> bool:
        return all(one.agrees for one in self.deviations)

    @property
    def refuted(self) -> bool:
        return any(one.refuted for one in self.deviations)

    @property
    def verdict(self) -> str:
        """``"agrees"``, what is wrong, or ``"undecided"``: too few samples to see where the mean points."""
        if not self.refuted:
            return "agrees" if self.agrees else "undecided"
        return "points backwards" if self.worst.forward is False else f"off by {self.worst.largest:.1f} s.e."


@dataclass(frozen=True)
class Job:
    """One claim on one testbed, to be measured in this process or in another.

    :param samples: numbers of episodes M, ascending
    :param repeats: K
    :param n_comparisons: how many comparisons share the chance of a false alarm
    """

    algorithm: str
    spec: AlgorithmSpec
    claim: GradientClaim
    testbed: str
    samples: tuple[int, ...] = SAMPLES
    repeats: int = REPEATS
    seed: int = 0
    n_comparisons: int = 1

    def __str__(self) -> str:
        return f"{self.testbed}: {self.algorithm}, {self.claim.name}"

    def __call__(self) -> Measurement:
        return measure(
            self.algorithm,
            self.spec,
            self.claim,
            testbed(self.testbed),
            self.samples,
            self.repeats,
            self.seed,
            self.n_comparisons,
        )


def jobs(
    specs: Mapping[str, AlgorithmSpec],
    testbeds: Iterable[str] = TESTBED_NAMES,
    samples: Iterable[int] = SAMPLES,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[Job]:
    """Every claim of ``specs`` on every testbed that it fits.

    :param specs: key -> SPEC, as ``sb3_pg_ext.available()`` gives them; those without claims are passed over
    :param testbeds: their names
    :param samples: numbers of episodes M of an estimate; two at least, since a limit is seen from two
    :param repeats: K, estimates of each number of episodes
    :param seed: of everything that is drawn at random
    :raises ValueError: naming the argument and what is allowed
    """
    sizes = tuple(sorted(set(samples)))
    if len(sizes) < 2 or sizes[0] < 2:
        raise ValueError(f"samples={list(sizes)}: two different numbers of episodes, of at least 2, are needed")
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats={repeats}: at least {MIN_REPEATS} are needed to know a standard error")
    if sizes[-1] * repeats < MIN_EPISODES:
        raise ValueError(
            f"samples={list(sizes)}, repeats={repeats}: the largest number of samples times repeats must be "
            f"{MIN_EPISODES} at least; the mean of fewer episodes may look biased when it is not"
        )
    fitting = [
        (key, spec, claim, name)
        for name in testbeds
        for key, spec in specs.items()
        for claim in spec.claims
        if testbed(name).takes(spec, claim)
    ]
    if not fitting:
        raise ValueError(f"testbed={list(testbeds)}: no claim of {', '.join(specs)} can be measured there")
    judged = [size for size in sizes if size * repeats >= MIN_EPISODES]
    n_comparisons = sum(len(judged) if claim.holds == "mean" else 1 for _, _, claim, _ in fitting)
    return [Job(*each, sizes, repeats, seed, n_comparisons) for each in fitting]


def measure(
    algorithm: str,
    spec: AlgorithmSpec,
    claim: GradientClaim,
    bed: Testbed,
    samples: tuple[int, ...] = SAMPLES,
    repeats: int = REPEATS,
    seed: int = 0,
    n_comparisons: int = 1,
) -> Measurement:
    """Measure one claim on one testbed.

    :param algorithm: what the algorithm is called
    :param spec: its record; it need not be registered
    :param claim: one of ``spec.claims``, or any other
    :param bed: a testbed, also one of your own
    :param samples: numbers of episodes M, ascending; claims that are not of a mean need two
    :param repeats: K
    :param n_comparisons: how many comparisons share the chance of a false alarm
    """
    estimate = named(claim.estimate, ESTIMATES, "estimate")
    clouds: list[Tensor] = []
    seconds: list[float] = []
    for n_episodes in samples:
        model = model_on(bed, spec, claim, n_episodes, seed_of(seed, algorithm, claim.name, bed.name, n_episodes))
        begin = time.process_time()
        clouds.append(th.stack([estimate(bed, model) for _ in range(repeats)]))
        seconds.append((time.process_time() - begin) / repeats)
    if claim.mean_over == "steps":
        clouds = [cloud * bed.horizon for cloud in clouds]
    units = net_of(model.policy).units
    clouds = [cloud / units for cloud in clouds]
    target = named(claim.target, TARGETS, "target")(bed, model).detach() / units
    true = gradient(bed, model).detach() / units
    judged = [m for m in samples if claim.holds == "mean" and (m * repeats >= MIN_EPISODES or m == samples[-1])]
    return Measurement(
        algorithm,
        claim,
        bed.name,
        n_parameters=len(target),
        target_cosine=th.cosine_similarity(target, true, dim=0).item(),
        target_length=(target.norm() / true.norm()).item(),
        gradient_length=true.norm().item(),
        sizes=tuple(
            _at_size(cloud, target, m, m * bed.horizon, s, n_comparisons if m in judged else None)
            for cloud, m, s in zip(clouds, samples, seconds, strict=True)
        ),
        limit=None if claim.holds == "mean" else _in_the_limit(clouds, samples, target, claim.holds, n_comparisons),
    )


def _at_size(
    cloud: Tensor, target: Tensor, n_episodes: int, steps: int, seconds: float, n_comparisons: int | None
) -> AtSize:
    scatter = (cloud - cloud.mean(0)).square().sum(1) * (len(cloud) / (len(cloud) - 1))
    return AtSize(
        episodes=n_episodes,
        repeats=len(cloud),
        variance=scatter.mean().item(),
        variance_error=scatter.std().item() / math.sqrt(len(cloud)),
        cosine=th.cosine_similarity(cloud, target[None]).mean().item(),
        rmse=((cloud - target).square().sum(1).mean().sqrt() / target.norm()).item(),
        steps=steps,
        seconds=seconds,
        deviation=None if n_comparisons is None else deviation([cloud], target, n_comparisons=n_comparisons),
    )


def _in_the_limit(
    clouds: list[Tensor], samples: tuple[int, ...], target: Tensor, holds: Holds, n_comparisons: int
) -> Deviation:
    if len(samples) < 2:
        raise ValueError(f"samples={list(samples)}: what holds in the limit is seen from two numbers of episodes")
    compare = direction_deviation if holds == "direction" else deviation
    return compare(clouds[-2:], target, towards_the_limit(samples[-1] / samples[-2]), n_comparisons)


def model_on(bed: Testbed, spec: AlgorithmSpec, claim: GradientClaim, n_episodes: int, seed: int) -> Any:
    """A model at the parameters of ``bed`` whose update is one plain gradient step from ``n_episodes`` episodes.

    Searches in parameter space play one with each of as many candidates.
    """
    plain: dict[str, Any] = {
        "learning_rate": 1.0,
        "n_steps": bed.horizon,
        "buffer_size": n_episodes * bed.horizon,  # nothing but the episodes of this update is replayed
        "n_episodes": n_episodes,
        "population_size": n_episodes,
        "gamma": bed.problem.gamma,
        "ent_coef": 0.0,
        "vf_coef": 0.0,
        "max_grad_norm": math.inf,
    }
    arguments, _ = constructor_parameters(spec.cls)
    own = asked_for(claim.options, bed.known(n_episodes))
    policy_kwargs = bed.policy_kwargs(Steps) | own.pop("policy_kwargs", {})
    options = {name: value for name, value in plain.items() if name in arguments} | own
    env = bed.vec_env(n_episodes)
    model = spec.cls(spec.policies[0], env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **options)
    bed.place(model.policy)
    model.set_logger(Logger(None, []))
    return model


def asked_for(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, with what a testbed knows in the place of every ``"testbed:<name>"``.

    :raises ValueError: it knows nothing of that name
    """
    found = dict(options)
    for option, value in options.items():
        if isinstance(value, str) and value.startswith(FROM_TESTBED):
            name = value.removeprefix(FROM_TESTBED)
            if name not in known:
                raise ValueError(f"{option}={value!r}: this testbed knows {', '.join(map(repr, known))}")
            found[option] = known[name]
    return found


def seed_of(seed: int, *names: object) -> int:
    """A seed of its own for everything that has a name, so that no result depends on what else is measured."""
    words = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0] >> 1)


def named(name: str, known: Mapping[str, Callable[..., Tensor]], kind: str) -> Callable[..., Tensor]:
    """The function that a claim names: one of ``known``, or ``"module:function"``.

    :raises ValueError: there is none
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{kind}={name!r}: allowed are {', '.join(map(repr, known))} and 'module:function'")
    found: Callable[..., Tensor] = getattr(importlib.import_module(module), function)
    return found
