"""TD3, twin delayed DDPG (Fujimoto et al. 2018), implemented by Stable-Baselines3.

DDPG with a delayed actor and, against overestimation, the smaller of two critics at a smoothed target action,

    y = r + gamma (1 - terminated) min_i Q'_i( s', mu'(s') + epsilon ),   epsilon = clip(N(0, sigma^2), -c, c).
"""

from stable_baselines3 import TD3

from sb3_pg_ext.algorithms import ddpg
from sb3_pg_ext.spec import AlgorithmSpec, Float, Int

SPEC = AlgorithmSpec(
    TD3,
    family="off_policy",
    paper="Fujimoto et al. 2018, Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477",
    action_spaces=("Box",),
    space={
        **ddpg.SPEC.space,
        "policy_delay": Int(1, 4),
        "target_policy_noise": Float(0.05, 0.5, log=True),
    },
)
