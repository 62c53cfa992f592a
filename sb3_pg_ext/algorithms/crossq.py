"""CrossQ, SAC without target networks (Bhatt et al. 2024), implemented by sb3-contrib.

Batch renormalisation sees (s, a) and (s', a') in one joint batch, so that the critic can bootstrap from itself,

    minimise E[ ( Q_i(s, a) - y )^2 ],   y = r + gamma (1 - terminated) ( min_i Q_i(s', a') - alpha log pi(a'|s') ),

with y held fixed.
"""

from sb3_contrib import CrossQ

from sb3_pg_ext.algorithms import sac
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Int

SPEC = AlgorithmSpec(
    CrossQ,
    family="off_policy",
    paper="Bhatt et al. 2024, CrossQ: Batch Normalization in Deep Reinforcement Learning, arXiv:1902.05605",
    action_spaces=("Box",),
    policies=("MlpPolicy",),
    space={
        **{name: dimension for name, dimension in sac.SPEC.space.items() if name != "tau"},
        "policy_delay": Int(1, 4),
        # Wide critics are part of the method.
        "policy_kwargs.net_arch": Choice(
            {"pi": [256, 256], "qf": [1024, 1024]}, {"pi": [256, 256], "qf": [512, 512]}, [256, 256]
        ),
    },
)
