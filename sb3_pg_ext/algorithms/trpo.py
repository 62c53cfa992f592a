"""TRPO, trust region policy optimisation (Schulman et al. 2015), implemented by sb3-contrib.

Maximises in each iteration, by a natural-gradient step and a backtracking line search,

    E[ pi(a|s) / pi_old(a|s) * A(s, a) ]   subject to   E[ KL(pi_old(.|s) || pi(.|s)) ] <= delta.
"""

from sb3_contrib import TRPO

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus

SPEC = AlgorithmSpec(
    TRPO,
    family="on_policy",
    paper="Schulman et al. 2015, Trust Region Policy Optimization, eq. 14, arXiv:1502.05477",
    space={
        "target_kl": Float(1e-3, 0.1, log=True),
        "n_steps": Int(7, 12, power=2),
        "gamma": OneMinus(1e-4, 0.1),
        "gae_lambda": OneMinus(1e-3, 0.2),
        "cg_max_steps": Int(5, 30),
        "cg_damping": Float(1e-3, 1.0, log=True),
        # Of the critic alone: the step of the policy follows from target_kl.
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "batch_size": Int(5, 9, power=2),
        "n_critic_updates": Int(5, 30),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
)
