"""ARS, augmented random search (Mania et al. 2018), implemented by sb3-contrib. Finite differences in parameter space,

    theta <- theta + alpha / (b sigma_R) sum_{k <= b} ( R(theta + nu delta_k) - R(theta - nu delta_k) ) delta_k,

over the b best of n directions delta_k ~ N(0, I), with sigma_R the standard deviation of the 2 b returns.
"""

from sb3_contrib import ARS

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int

SPEC = AlgorithmSpec(
    ARS,
    family="policy_search",
    paper="Mania et al. 2018, Simple random search provides a competitive approach to reinforcement learning, "
    "algorithm 2, arXiv:1803.07055",
    action_spaces=("Box", "Discrete"),
    policies=("LinearPolicy", "MlpPolicy"),
    space={
        "n_delta": Int(2, 6, power=2),
        "n_top": Choice(None, 1, 2, 4),  # at most the smallest n_delta; None means all
        "learning_rate": Float(1e-3, 0.3, log=True),
        "delta_std": Float(0.01, 0.3, log=True),
        "zero_policy": Choice(True, False),
        "n_eval_episodes": Int(1, 4),
    },
)
