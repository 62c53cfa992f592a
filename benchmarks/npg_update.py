"""``python -m benchmarks.npg_update``: NPG's update against sb3-contrib's TRPO, in one process, interleaved; CPU time.

Both have 4096 steps of HalfCheetah-v5, 64x64 nets, 10 iterations of conjugate gradients and 10 epochs of the critic
with minibatches of 128. "CG solve" is the solve alone: the activations and TRPO's graph of the KL gradient are ready.
Exit 1 if a target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.distributions import DiagGaussianDistribution, kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

from sb3_pg_ext.algorithms.npg import NPG
from sb3_pg_ext.bases.actor_jacobian import actor_jacobian, family_of, parameters_of
from sb3_pg_ext.functional.curvature import conjugate_gradient, fisher_vector_product
from sb3_pg_ext.functional.jacobian import AutogradJacobian

N_ENVS, BATCH, CG_STEPS, DAMPING = 8, 4096, 10, 0.1
#: What is measured against TRPO, and the share of TRPO's time that it may take.
TARGETS = {"CG solve": 0.45, "whole update": 0.5}


def models() -> tuple[NPG, TRPO]:
    """Both with a rollout of 4096 steps."""
    options: dict[str, Any] = {
        "n_steps": BATCH // N_ENVS,
        "batch_size": 128,
        "n_critic_updates": 10,
        "cg_max_steps": CG_STEPS,
        "cg_damping": DAMPING,
        "seed": 0,
        "device": "cpu",
    }
    npg = NPG("MlpPolicy", make_vec_env("HalfCheetah-v5", N_ENVS, seed=0), cg_tolerance=0.0, **options)
    trpo = TRPO("MlpPolicy", make_vec_env("HalfCheetah-v5", N_ENVS, seed=0), **options)
    return npg.learn(BATCH), trpo.learn(BATCH)


def npg_solve(npg: NPG, g: Tensor, closed_form: bool = True) -> Callable[[], Any]:
    """(F + damping I)^-1 g."""
    obs = npg.rollout.observations
    jacobian: Any = actor_jacobian(npg.policy, obs)
    if not closed_form:
        jacobian = AutogradJacobian(parameters_of(npg.policy.get_distribution(obs)), jacobian.parameters)
    metric = family_of(npg.policy.action_dist).fisher(jacobian.eta)
    product = partial(fisher_vector_product, jacobian, metric, damping=DAMPING)
    return lambda: conjugate_gradient(product, g, CG_STEPS, 0.0)


def trpo_solve(trpo: TRPO, npg: NPG, g: Tensor) -> Callable[[], Any]:
    """The same by TRPO's own functions: products with the Hessian of the KL divergence."""
    obs = npg.rollout.observations
    with th.no_grad():
        mean, log_std = parameters_of(trpo.policy.get_distribution(obs)).chunk(2, dim=1)
        old = DiagGaussianDistribution(mean.shape[1]).proba_distribution(mean, log_std[0])
    new = trpo.policy.get_distribution(obs)
    objective = new.log_prob(npg.rollout.actions).mean()
    parameters, _, grad_kl, _ = trpo._compute_actor_grad(kl_divergence(new, old).mean(), objective)
    product = partial(trpo.hessian_vector_product, parameters, grad_kl)
    return lambda: conjugate_gradient_solver(product, g, max_iter=CG_STEPS, residual_tol=0.0)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(works: dict[str, Callable[[], Any]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, all in turn, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(n_rounds + 2):
        for name, work in works.items():
            times[name].append(cpu_seconds(work))
    return {name: seconds[2:] for name, seconds in times.items()}


def report(what: str, times: dict[str, list[float]]) -> bool:
    """Print medians and median ratios to TRPO; whether NPG's is within its target."""
    ratios = {
        name: statistics.median(a / b for a, b in zip(t, times["TRPO"], strict=True)) for name, t in times.items()
    }
    for name, seconds in times.items():
        print(f"{what:14s} {name:16s} {1e3 * statistics.median(seconds):8.1f} ms   {ratios[name]:.2f} of TRPO")
    met = ratios["NPG"] <= TARGETS[what]
    print(f"{what:14s} target {TARGETS[what]}: {'met' if met else 'MISSED'}")
    return met


def main(n_rounds: int = 15) -> int:
    th.set_num_threads(1)
    npg, trpo = models()
    trpo.policy.load_state_dict(npg.policy.state_dict())
    g = th.randn(sum(p.numel() for p in actor_jacobian(npg.policy, npg.rollout.observations).parameters))
    solves = {
        "NPG": npg_solve(npg, g),
        "NPG, any net": npg_solve(npg, g, closed_form=False),
        "TRPO": trpo_solve(trpo, npg, g),
    }
    met = report("CG solve", compare(solves, n_rounds))
    met &= report("whole update", compare({"NPG": npg.train, "TRPO": trpo.train}, n_rounds))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
