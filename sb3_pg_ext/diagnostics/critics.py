"""The exact Q_t(s, a) and V_t(s) of a testbed in the place of learned critics.

A critic sees the state but not the time. In a batch that holds whole episodes of H steps one after another it is known
from the place of a step; in a batch that was drawn from a replay buffer, from the state itself, which occurs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from scipy.spatial import KDTree
from torch import Tensor, nn

from sb3_pg_ext.diagnostics.testbeds import RegulatorBed, Testbed, net_of
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.nets.critics import DiscreteCritic
from sb3_pg_ext.nets.pathwise_gradients import ClosedForm

#: States (B, S) -> the times at which they were met, (B,).
When = Callable[[Tensor], Tensor]


def in_order(horizon: int) -> When:
    """For batches of whole episodes of ``horizon`` steps, one after another."""
    return lambda states: th.arange(len(states)) % horizon


def as_recorded(record: Callable[[], Tensor], n_envs: int) -> When:
    """For states that are, up to rounding, among those on record.

    :param record: the states as they are on record now, (T N, S): first those of all N envs at time 0, and so on
    """

    def when(states: Tensor) -> Tensor:
        _, nearest = KDTree(record().numpy()).query(states.detach().numpy())
        return th.from_numpy(nearest) // n_envs

    return when


class ExactTable(DiscreteCritic):
    """Q_t(s, .) of a finite process.

    :param Q: (H, S, A)
    """

    exact = True

    def __init__(self, Q: Tensor):
        nn.Module.__init__(self)
        self.table, self.when = Q.float(), in_order(len(Q))
        self.nothing = nn.Parameter(th.zeros(1))  # something for an optimizer to hold

    def every_action(self, obs: Tensor) -> Tensor:
        return th.einsum("bs,bsa->ba", obs.float(), self.table[self.when(obs)]) + 0 * self.nothing


class ExactQuadratic(nn.Module):
    """Q_t(x, u) and V_t(x) of a regulator, differentiable in both.

    :param bed: the regulator
    :param law: of the policy
    :param when: the times of states
    """

    exact = True

    def __init__(self, bed: Testbed, law: Any, when: When):
        super().__init__()
        self.bed, self.law, self.when = bed, law.detach(), when
        self.nothing = nn.Parameter(th.zeros(1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q_t: (B, S) and (B, A), or (K, B, A) -> (B,), or (K, B)."""
        K, std, bias = self.law
        x, times = obs.expand(*actions.shape[:-1], -1), self.when(obs)
        values = th.zeros(actions.shape[:-1], dtype=th.float64)
        for t in times.unique().tolist():
            rows = times == t
            u_t, x_t = actions[..., rows, :], x[..., rows, :]
            values[..., rows] = oracles.lqr_action_value(self.bed.problem, K, std, x_t, u_t, bias, t=t)
        return values.float() + 0 * self.nothing

    def value(self, states: Tensor) -> Tensor:
        """V_t: (B, S) -> (B,)."""
        K, std, bias = self.law
        times, values = self.when(states), th.zeros(len(states), dtype=th.float64)
        for t in times.unique().tolist():
            rows = times == t
            values[rows] = oracles.lqr_state_value(self.bed.problem, K, std, states[rows], bias, t=t)
        return values.float()


class ExactSlope(ClosedForm):
    """The gradients of an actor and of learned critics, the actor's by the slope of an exact Q.

    :param model: an SVG0 with Box actions
    :param q: the exact Q
    """

    def __init__(self, model: Any, q: ExactQuadratic):
        super().__init__(model.actor, model.critic)
        space = model.action_space
        self.exact, self.low, self.width = q, th.tensor(space.low), th.tensor(space.high - space.low)

    @th.enable_grad()
    def value_and_slope(self, obs: Any, codes: Tensor) -> tuple[Tensor, Tensor]:
        codes = codes.detach().requires_grad_()
        value = self.exact(obs, self.low + (codes + 1) / 2 * self.width).mean()
        (slope,) = th.autograd.grad(-value, codes)
        return value.detach(), slope


def exact_critic(bed: Testbed, policy: Any, when: When | None = None) -> Any:
    """Q_t of the policy as it stands.

    :param when: the times of states; None where batches hold whole episodes one after another
    """
    with th.no_grad():
        law = bed.law(net_of(policy))
    if isinstance(bed, RegulatorBed):
        return ExactQuadratic(bed, law, when or in_order(bed.horizon))
    return ExactTable(oracles.mdp_values(bed.problem, law, horizon=bed.horizon).Q)
