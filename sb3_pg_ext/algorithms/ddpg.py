"""DDPG, deep deterministic policy gradient (Lillicrap et al. 2016), implemented by Stable-Baselines3. Over replay,

    actor:   maximise E[ Q(s, mu(s)) ],
    critic:  minimise E[ ( r + gamma (1 - terminated) Q'(s', mu'(s')) - Q(s, a) )^2 ],

with target networks mu', Q' that follow mu, Q at the rate tau. Exploration is the noise that the user adds to mu(s):
``action_noise``, None unless given.
"""

from stable_baselines3 import DDPG

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus

SPEC = AlgorithmSpec(
    DDPG,
    family="off_policy",
    paper="Lillicrap et al. 2016, Continuous control with deep reinforcement learning, arXiv:1509.02971",
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
        "policy_kwargs.net_arch": Choice([64, 64], [256, 256], [400, 300]),
    },
)
