"""DQN, deep Q-network (Mnih et al. 2015), implemented by Stable-Baselines3.

Value based: the policy is epsilon-greedy in Q. Minimises over replayed transitions, with the Huber loss L and a target
network Q', a copy of Q renewed every ``target_update_interval`` steps,

    E[ L( r + gamma (1 - terminated) max_a' Q'(s', a') - Q(s, a) ) ].
"""

from stable_baselines3 import DQN

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus

SPEC = AlgorithmSpec(
    DQN,
    family="off_policy",
    paper="Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518",
    action_spaces=("Discrete",),
    space={
        "learning_rate": Float(1e-5, 1e-2, log=True),
        "batch_size": Int(5, 9, power=2),
        "buffer_size": Choice(10_000, 100_000, 1_000_000),
        "learning_starts": Choice(100, 1_000, 10_000),
        "gamma": OneMinus(1e-4, 0.1),
        "n_steps": Int(1, 5),
        "train_freq": Int(0, 8, power=2),
        "gradient_steps": Choice(1, -1),  # -1: as many as steps were collected
        "target_update_interval": Int(10, 20_000, log=True),
        "exploration_fraction": Float(5e-3, 0.5, log=True),
        "exploration_final_eps": Float(0.01, 0.2, log=True),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
)
