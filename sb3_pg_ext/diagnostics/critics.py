"""The exact Q_t(s, a) of a testbed in the place of a learned critic.

A critic sees the state but not the time; here it is known from the place of a step in the batch, which holds whole
episodes of H steps one after another.
"""

from __future__ import annotations

from typing import Any

import torch as th
from torch import Tensor, nn

from sb3_pg_ext.diagnostics.testbeds import Net, RegulatorBed, Testbed
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.nets.critics import DiscreteCritic


class ExactTable(DiscreteCritic):
    """Q_t(s, .) of a finite process.

    :param Q: (H, S, A)
    """

    exact = True

    def __init__(self, Q: Tensor):
        nn.Module.__init__(self)
        self.table = Q.float()
        self.nothing = nn.Parameter(th.zeros(1))  # something for an optimizer to hold

    def every_action(self, obs: Tensor) -> Tensor:
        times = th.arange(len(obs)) % len(self.table)
        return th.einsum("bs,bsa->ba", obs.float(), self.table[times]) + 0 * self.nothing


class ExactQuadratic(nn.Module):
    """Q_t(x, u) of a regulator.

    :param bed: the regulator
    :param law: of the policy
    """

    exact = True

    def __init__(self, bed: Testbed, law: Any):
        super().__init__()
        self.bed, self.law = bed, law
        self.nothing = nn.Parameter(th.zeros(1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """(B, S) and (B, A), or (K, B, A) -> (B,), or (K, B)."""
        x = obs.expand(*actions.shape[:-1], -1)
        values = th.empty(actions.shape[:-1], dtype=th.float64)
        for t in range(self.bed.horizon):
            at = (..., slice(t, None, self.bed.horizon))
            x_t, u_t = x[(*at, slice(None))], actions[(*at, slice(None))]
            K, std, bias = self.law
            values[at] = oracles.lqr_action_value(self.bed.problem, K, std, x_t, u_t, bias, t=t)
        return values.float() + 0 * self.nothing


def exact_critic(bed: Testbed, policy: Any) -> Any:
    """Q_t of the policy as it stands."""
    with th.no_grad():
        law = bed.law(Net(policy))
    if isinstance(bed, RegulatorBed):
        return ExactQuadratic(bed, law)
    return ExactTable(oracles.mdp_values(bed.problem, law, horizon=bed.horizon).Q)
