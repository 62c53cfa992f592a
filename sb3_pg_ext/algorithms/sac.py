"""SAC, soft actor-critic (Haarnoja et al. 2018), implemented by Stable-Baselines3.

Maximises return plus entropy, E[ sum_t gamma^t ( r_t + alpha H(pi(.|s_t)) ) ]. Over replay, with a' ~ pi(.|s'),

    actor:   maximise E[ min_i Q_i(s, a) - alpha log pi(a|s) ],   a = f(s, noise),
    critic:  y = r + gamma (1 - terminated) ( min_i Q'_i(s', a') - alpha log pi(a'|s') ).

``ent_coef="auto"`` adapts alpha so that the entropy of pi stays at ``target_entropy``.
"""

from stable_baselines3 import SAC

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus

SPEC = AlgorithmSpec(
    SAC,
    family="off_policy",
    paper="Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905",
    action_spaces=("Box",),
    space={
        "learning_rate": Float(1e-5, 1e-2, log=True),
        "batch_size": Int(5, 9, power=2),
        "buffer_size": Choice(10_000, 100_000, 1_000_000),
        "learning_starts": Choice(100, 1_000, 10_000),
        "tau": Float(1e-3, 0.1, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "train_freq": Int(0, 6, power=2),
        "gradient_steps": Choice(1, -1),  # -1: as many as steps were collected
        "ent_coef": Choice("auto", 0.2, 0.05, 0.01),
        "policy_kwargs.net_arch": Choice([64, 64], [256, 256], [400, 300]),
    },
)
