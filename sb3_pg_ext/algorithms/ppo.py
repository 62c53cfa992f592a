"""PPO, proximal policy optimisation, clipped (Schulman et al. 2017), implemented by Stable-Baselines3.

Maximises over several epochs of minibatches, with rho_t = pi(a_t|s_t) / pi_old(a_t|s_t) and A_t from GAE,

    E[ min( rho_t A_t, clip(rho_t, 1 - epsilon, 1 + epsilon) A_t ) + c_H H(pi(.|s_t)) ] - c_V E[ (V(s_t) - G_t)^2 ].
"""

from stable_baselines3 import PPO

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus

SPEC = AlgorithmSpec(
    PPO,
    family="on_policy",
    paper="Schulman et al. 2017, Proximal Policy Optimization Algorithms, eq. 7 and 9, arXiv:1707.06347",
    space={
        "learning_rate": Float(1e-5, 5e-3, log=True),
        "n_steps": Int(5, 11, power=2),
        "batch_size": Int(5, 9, power=2),
        "n_epochs": Int(1, 20, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "gae_lambda": OneMinus(1e-3, 0.2),
        "clip_range": Float(0.1, 0.4),
        "ent_coef": Choice(0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
)
