"""Exact answers, in float64, to check estimators and to measure regret against.

* :mod:`~sb3_pg_ext.envs.oracles.riccati`: the optimal regulator, with and without a horizon;
* :mod:`~sb3_pg_ext.envs.oracles.lqr`: J(K) of linear-Gaussian policies, its gradient, values and Fisher matrix;
* :mod:`~sb3_pg_ext.envs.oracles.mdp`: V, Q, visits, J, gradient, Fisher matrix and optimum of finite processes;
* :mod:`~sb3_pg_ext.envs.oracles.laws`: the whole law of an estimator: enumeration, quadrature, optimal baselines.

Every objective is a differentiable torch function of the policy: for any parameterisation of it, autograd gives the
exact gradient. ``horizon=None`` and ``gamma=None`` mean the problem's own; ``horizon=math.inf`` is the unlimited task.
``discount_states`` means what it means in REINFORCE: ``True`` weights step t by gamma^t and gives the gradient of the
discounted objective, ``False`` leaves the weight out and gives what the usual estimator expects.
"""

from sb3_pg_ext.envs.oracles.laws import (
    Trajectories,
    enumerate_trajectories,
    estimator_variance,
    gaussian_estimator_moments,
    optimal_baseline,
)
from sb3_pg_ext.envs.oracles.lqr import (
    LinearGaussianGradient,
    affine_gain,
    lqr_action_value,
    lqr_fisher,
    lqr_gradient,
    lqr_objective,
    lqr_state_value,
)
from sb3_pg_ext.envs.oracles.mdp import (
    MDPOptimum,
    Values,
    average_reward,
    mdp_fisher,
    mdp_gradient,
    mdp_objective,
    mdp_optimum,
    mdp_policy_derivative,
    mdp_surrogate,
    mdp_values,
    mdp_visitation,
    natural_gradient,
    softmax_fisher,
    stationary_distribution,
)
from sb3_pg_ext.envs.oracles.riccati import (
    LQROptimum,
    lqr_average_cost,
    lqr_optimum,
    riccati,
    riccati_recursion,
)

__all__ = [
    "LQROptimum",
    "LinearGaussianGradient",
    "MDPOptimum",
    "Trajectories",
    "Values",
    "affine_gain",
    "average_reward",
    "enumerate_trajectories",
    "estimator_variance",
    "gaussian_estimator_moments",
    "lqr_action_value",
    "lqr_average_cost",
    "lqr_fisher",
    "lqr_gradient",
    "lqr_objective",
    "lqr_optimum",
    "lqr_state_value",
    "mdp_fisher",
    "mdp_gradient",
    "mdp_objective",
    "mdp_optimum",
    "mdp_policy_derivative",
    "mdp_surrogate",
    "mdp_values",
    "mdp_visitation",
    "natural_gradient",
    "optimal_baseline",
    "riccati",
    "riccati_recursion",
    "softmax_fisher",
    "stationary_distribution",
]
