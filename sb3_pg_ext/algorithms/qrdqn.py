"""QR-DQN, quantile regression DQN (Dabney et al. 2018), implemented by sb3-contrib.

Learns N quantiles theta_i(s, a) of the return instead of its mean. Minimises, at the levels tau_i = (i - 1/2) / N,

    sum_i E_j[ rho_{tau_i}( r + gamma (1 - terminated) theta'_j(s', a*) - theta_i(s, a) ) ],
    rho_tau(u) = |tau - 1{u < 0}| Huber(u),   a* = argmax_a sum_j theta'_j(s', a).
"""

from sb3_contrib import QRDQN

from sb3_pg_ext.algorithms import dqn
from sb3_pg_ext.spec import AlgorithmSpec, Int

SPEC = AlgorithmSpec(
    QRDQN,
    family="off_policy",
    paper="Dabney et al. 2018, Distributional Reinforcement Learning with Quantile Regression, arXiv:1710.10044",
    action_spaces=("Discrete",),
    space={**dqn.SPEC.space, "policy_kwargs.n_quantiles": Int(5, 200, log=True)},
)
