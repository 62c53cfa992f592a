"""PPO that knows which actions are invalid (Huang and Ontanon 2022), implemented by sb3-contrib.

The objective of PPO for the renormalised policy

    pi(a|s) = m(s, a) exp(logit_a(s)) / sum_b m(s, b) exp(logit_b(s)),   m(s, a) in {0, 1}.

The environment gives the mask m through its method ``action_masks()``; without one, ``learn(..., use_masking=False)``.
"""

from sb3_contrib import MaskablePPO

from sb3_pg_ext.algorithms import ppo
from sb3_pg_ext.spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    MaskablePPO,
    family="on_policy",
    paper="Huang and Ontanon 2022, A Closer Look at Invalid Action Masking in Policy Gradient, arXiv:2006.14171",
    action_spaces=("Discrete", "MultiDiscrete", "MultiBinary"),
    tags=("action_masks",),
    space=ppo.SPEC.space,
)
