"""TQC, truncated quantile critics (Kuznetsov et al. 2020), implemented by sb3-contrib.

SAC with quantile critics: the atoms z of all N critics at (s', a') are pooled and sorted, and the d N largest are
dropped, which controls overestimation. The quantiles of every critic are regressed (as in QR-DQN) on the rest,

    y_k = r + gamma (1 - terminated) ( z_(k)(s', a') - alpha log pi(a'|s') ),   k = 1, ..., (M - d) N.
"""

from sb3_contrib import TQC

from sb3_pg_ext.algorithms import sac
from sb3_pg_ext.spec import AlgorithmSpec, Int

SPEC = AlgorithmSpec(
    TQC,
    family="off_policy",
    paper="Kuznetsov et al. 2020, Controlling Overestimation Bias with Truncated Mixture of Continuous "
    "Distributional Quantile Critics, arXiv:2005.04269",
    action_spaces=("Box",),
    space={**sac.SPEC.space, "top_quantiles_to_drop_per_net": Int(0, 8)},
)
