r"""Small problems whose gradients are known, each with a policy at which they are estimated.

Episodes have a fixed length H and end there, so that M episodes are M H steps for every algorithm. The exact answers
are differentiable functions of a *law*, what the policy does in the problem: pi(a|s) ``(S, A)`` in a finite process;
gain, standard deviation and offset of u ~ N(-K x + c, diag(std^2)) in a regulator. They are computed in float64, from a
copy of the policy in float64.

Beside J itself each bed has the surrogate

    L = sum_t w_t E[ sum_a pi(a|s_t) Q_t(s_t, a) ],    s_t visited and a' chosen by the policy ``old``,
    Q_t(s, a) = r + gamma E[ (1 - lambda) V(s') + lambda Q_{t+1}(s', a') ].

At ``pi = old`` with ``w_t = gamma^t`` and ``lambda = 1`` its gradient is that of J (Sutton et al. 2000, theorem 1);
otherwise it is what an estimator expects that leaves gamma^t out, uses a critic V, or weighs actions but not states.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from sb3_pg_ext.diagnostics.names import TESTBED_NAMES
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPVectorEnv
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQR, LQREnv, LQRVectorEnv
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.spec import AlgorithmSpec, GradientClaim


class Net:
    """The actor and the critic of an SB3 MLP policy as functions in float64, with the actor's parameters.

    :param policy: it is copied
    """

    def __init__(self, policy: Any):
        # A distribution keeps the graph of its last call, which cannot be copied and is not needed.
        distribution = getattr(policy, "action_dist", None)
        self.policy = deepcopy(policy, {id(distribution): distribution}).double()
        self.parameters = actor_parameters(self.policy)

    def actor(self, obs: Any) -> Tensor:
        """Logits or mean actions, (B, A)."""
        output: Tensor = self.policy.action_net(self.policy.mlp_extractor.forward_actor(_float64(obs)))
        return output

    def critic(self, obs: Any) -> Tensor:
        """V(s), (B,), without gradient."""
        values: Tensor = self.policy.value_net(self.policy.mlp_extractor.forward_critic(_float64(obs)))
        return values.flatten().detach()

    @property
    def log_std(self) -> Tensor:
        """Of the actions, (A,)."""
        return self.policy.log_std

    @property
    def units(self) -> Tensor:
        """By how much actions change, in the environment's units, with one unit of each parameter, (P,)."""
        return th.ones(sum(parameter.numel() for parameter in self.parameters), dtype=th.float64)

    def gradient(self, scalar: Tensor) -> Tensor:
        """d scalar / d theta of the actor's parameters, (P,)."""
        gradients = th.autograd.grad(scalar, self.parameters, retain_graph=True, materialize_grads=True)
        return th.cat([gradient.flatten() for gradient in gradients])

    def jacobian(self, outputs: Tensor) -> Tensor:
        """d outputs / d theta, (number of outputs, P)."""
        return th.stack([self.gradient(output) for output in outputs.flatten()])


class ScaledNet(Net):
    """The same of an actor apart from its critics, whose actions are codes in [-1, 1]: u = centre + half code."""

    def __init__(self, policy: Any):
        super().__init__(policy)
        self.half = _float64(half_range(policy))
        self.centre = _float64(policy.action_space.low) + self.half

    def actor(self, obs: Any) -> Tensor:
        return self.centre + self.half * self.policy.actor.net(_float64(obs))

    @property
    def log_std(self) -> Tensor:
        return self.policy.actor.head.log_std + self.half.log()

    @property
    def units(self) -> Tensor:
        last = self.policy.actor.last_layer
        by_row = {id(last.weight): self.half[:, None], id(last.bias): self.half}
        one = th.ones(1, dtype=th.float64)
        return th.cat([by_row.get(id(p), one).expand(p.shape).flatten() for p in self.parameters])


def net_of(policy: Any) -> Net:
    """The nets of a policy, whichever kind it is."""
    return ScaledNet(policy) if is_scaled(policy) else Net(policy)


def is_scaled(policy: Any) -> bool:
    """Whether the policy is an actor apart from its critics, whose actions are codes in [-1, 1]."""
    return hasattr(policy, "actor")


def half_range(policy: Any) -> Any:
    """Half the width of the action space, (A,)."""
    return (policy.action_space.high - policy.action_space.low) / 2


def _float64(obs: Any) -> Tensor:
    return th.as_tensor(obs, dtype=th.float64)


def actor_parameters(policy: Any) -> list[nn.Parameter]:
    """Everything in a policy that is not the critic's, in the policy's order."""
    if is_scaled(policy):
        return list(policy.actor.parameters())
    return [parameter for name, parameter in policy.named_parameters() if "value" not in name]


#: Parameters of an actor that is apart from its critics, and what they are called in a ``centre``.
ALIASES = {
    "actor.net.0.weight": "action_net.weight",
    "actor.net.0.bias": "action_net.bias",
    "actor.head.log_std": "log_std",
}


class Gaussian(NamedTuple):
    """u ~ N(-K x + bias, diag(std^2)): K ``(A, S)``, std ``(A,)``, bias ``(A,)``."""

    K: Tensor
    std: Tensor
    bias: Tensor

    def detach(self) -> Gaussian:
        return Gaussian(*(part.detach() for part in self))


@dataclass(frozen=True, eq=False)
class Testbed:
    """A problem, the policy's network, and where its parameters stand.

    :param name: of the bed
    :param problem: its record; ``problem.gamma`` is the discount of the objective
    :param net_arch: hidden layers of the policy and of the critic
    :param spread: standard deviation of the normal numbers that the parameters are
    :param centre: what is added to them, by the name of the parameter
    """

    name: str
    problem: Any
    net_arch: Any = field(default_factory=list)
    spread: float = 0.7
    centre: dict[str, Any] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        """H, steps of an episode."""
        return self.problem.horizon or 1

    @property
    def action_space(self) -> str:
        return type(self.problem.action_space).__name__

    def takes(self, spec: AlgorithmSpec, claim: GradientClaim) -> bool:
        """Whether the claim is about policies and actions such as there are here."""
        fitting = self.action_space in set(spec.action_spaces) & set(claim.action_spaces)
        return fitting and (spec.family == "policy_search") == isinstance(self, SearchBed)

    def vec_env(self, n_envs: int) -> VecEnv:
        """``n_envs`` copies of the problem."""
        raise NotImplementedError

    def known(self, n_episodes: int) -> dict[str, Any]:
        """What a claim may ask for in its options, as ``"testbed:<name>"``.

        :param n_episodes: M
        """
        return {"horizon": self.horizon, "episodes": n_episodes, "steps": n_episodes * self.horizon}

    def policy_kwargs(self, optimizer_class: type) -> dict[str, Any]:
        """Of the policy that is placed here.

        :param optimizer_class: what takes its steps
        """
        return {"net_arch": self.net_arch, "optimizer_class": optimizer_class, "optimizer_kwargs": {}}

    def place(self, policy: Any, shift: float = 0.0) -> None:
        """Give every parameter its value.

        :param shift: how far from there, in units of ``spread``, in a fixed random direction
        """
        generator = th.Generator().manual_seed(1)
        for name, parameter in policy.named_parameters():
            here, there = th.randn(2, *parameter.shape, generator=generator, dtype=th.float64)
            centre = th.as_tensor(self.centre.get(ALIASES.get(name, name), 0.0), dtype=th.float64)
            parameter.data.copy_(centre + self.spread * (here + shift * there))

    def law(self, net: Net) -> Any:
        raise NotImplementedError

    def objective(self, law: Any) -> Tensor:
        """J, the expected discounted return; a scalar."""
        raise NotImplementedError

    def surrogate(self, law: Any, old: Any, discount_states: bool, critic: Any = None, lam: float = 1.0) -> Tensor:
        """L, a scalar (see the head of this module).

        :param law: of pi; carries the gradient
        :param old: the law whose states are visited and whose actions follow
        :param discount_states: ``w_t = gamma^t``; else 1
        :param critic: V as :meth:`critic` gives it; read for ``lam < 1`` only
        :param lam: lambda
        """
        raise NotImplementedError

    def critic(self, net: Net) -> Any:
        """The policy's critic V, for :meth:`surrogate`."""
        raise NotImplementedError

    def fisher(self, net: Net, discount_states: bool) -> Tensor:
        """E[score score^T] of one step, its state drawn with weight w_t from the steps of an episode; ``(P, P)``."""
        raise NotImplementedError

    def weights(self, discount_states: bool) -> list[float]:
        """w_t of each step."""
        return [self.problem.gamma**t if discount_states else 1.0 for t in range(self.horizon)]


class FiniteBed(Testbed):
    """A finite decision process that shows its state as a unit vector."""

    problem: FiniteMDP

    def vec_env(self, n_envs: int) -> VecEnv:
        return as_vec_env(FiniteMDPVectorEnv(self.problem, n_envs))

    def law(self, net: Net) -> Tensor:
        return net.actor(self.problem.features).softmax(-1)

    def objective(self, law: Tensor) -> Tensor:
        return oracles.mdp_objective(self.problem, law, horizon=self.horizon)

    def surrogate(
        self, law: Tensor, old: Tensor, discount_states: bool, critic: Tensor | None = None, lam: float = 1.0
    ) -> Tensor:
        reward, transition = th.tensor(self.problem.reward), th.tensor(self.problem.transition)
        V = th.zeros(self.problem.n_states, dtype=th.float64) if critic is None else critic
        Q: list[Tensor] = []
        after = th.zeros_like(V)
        for _ in range(self.horizon):
            Q.insert(0, reward + self.problem.gamma * transition @ after)
            after = (1 - lam) * V + lam * (old * Q[0]).sum(1)
        total, visits = th.zeros((), dtype=th.float64), th.tensor(self.problem.start)
        for weight, Q_t in zip(self.weights(discount_states), Q, strict=True):
            total = total + weight * (visits[:, None] * law * Q_t).sum()
            visits = th.einsum("s,sa,saz->z", visits, old, transition)
        return total

    def critic(self, net: Net) -> Tensor:
        return net.critic(self.problem.features)

    def fisher(self, net: Net, discount_states: bool) -> Tensor:
        logits = net.actor(self.problem.features)
        Z = net.jacobian(logits)
        return Z.T @ oracles.mdp_fisher(self.problem, logits, horizon=self.horizon, discount_states=discount_states) @ Z


class RegulatorBed(Testbed):
    """A linear-quadratic regulator under a linear-Gaussian policy."""

    problem: LQR

    def vec_env(self, n_envs: int) -> VecEnv:
        return as_vec_env(LQRVectorEnv(n_envs, **self._arguments))

    def known(self, n_episodes: int) -> dict[str, Any]:
        return super().known(n_episodes) | {"dynamics": self.problem, "termination": never}

    def place(self, policy: Any, shift: float = 0.0) -> None:
        super().place(policy, shift)
        if is_scaled(policy):  # so that the same u ~ N(-K x + bias, std^2) is placed here as for any other policy
            with th.no_grad():
                last, half = policy.actor.last_layer, th.as_tensor(half_range(policy))
                last.weight.div_(half[:, None])
                last.bias.div_(half)
                policy.actor.head.log_std.sub_(half.log())

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"preset": None, **{name: getattr(self.problem, name) for name in LQR.__dataclass_fields__}}

    def law(self, net: Net) -> Gaussian:
        K, bias = oracles.affine_gain(net.actor, self.problem.B.shape[0], dtype=th.float64)
        return Gaussian(K, net.log_std.exp(), bias)

    def objective(self, law: Gaussian) -> Tensor:
        return oracles.lqr_objective(self.problem, *law)

    def surrogate(
        self, law: Gaussian, old: Gaussian, discount_states: bool, critic: Tensor | None = None, lam: float = 1.0
    ) -> Tensor:
        new_loop, old_loop, gamma = self._loop(law), self._loop(old), self.problem.gamma
        V = th.zeros_like(old_loop.F) if critic is None else critic
        # What a state is worth is z'Wz for z = (x, 1), up to constants, which no gradient sees.
        W = [th.zeros_like(V)]
        for _ in range(self.horizon - 1):
            W.insert(0, (1 - lam) * V + lam * (gamma * old_loop.F.T @ W[0] @ old_loop.F - old_loop.cost))
        total, M = th.zeros((), dtype=th.float64), old_loop.start
        for weight, W_next in zip(self.weights(discount_states), W, strict=True):
            ahead = (W_next * (new_loop.F @ M @ new_loop.F.T + new_loop.noise)).sum()
            total = total + weight * (gamma * ahead - (new_loop.cost * M).sum() - new_loop.noise_cost)
            M = old_loop.F @ M @ old_loop.F.T + old_loop.noise
        return total

    def critic(self, net: Net) -> Tensor:
        slope, offset = oracles.affine_gain(lambda x: net.critic(x)[:, None], self.problem.B.shape[0], th.float64)
        V = th.zeros(slope.shape[1] + 1, slope.shape[1] + 1, dtype=th.float64)
        V[-1, :-1] = V[:-1, -1] = -slope[0] / 2
        V[-1, -1] = offset[0]
        return V

    def fisher(self, net: Net, discount_states: bool) -> Tensor:
        K, std, bias = self.law(net)
        Z = net.jacobian(th.cat([K.flatten(), bias, net.log_std]))
        F = oracles.lqr_fisher(self.problem, K.detach(), std.detach(), bias.detach(), discount_states=discount_states)
        return Z.T @ F @ Z

    @cached_property
    def _arrays(self) -> dict[str, Tensor]:
        p = self.problem
        return {name: th.as_tensor(getattr(p, name), dtype=th.float64) for name in ("A", "B", "Q", "R")}

    def _loop(self, law: Gaussian) -> Loop:
        a, one = self._arrays, th.ones(1, 1, dtype=th.float64)
        gain = th.cat([law.K, -law.bias[:, None]], 1)  # u = -gain z + noise
        B = th.cat([a["B"], th.zeros(1, a["B"].shape[1], dtype=th.float64)])
        process, spread = (_padded(getattr(self.problem, name)) for name in ("noise_std", "start_std"))
        mean = th.cat([th.as_tensor(self.problem.start_mean), one[0]])
        return Loop(
            F=th.block_diag(a["A"], one) - B @ gain,
            cost=th.block_diag(a["Q"], 0 * one) + gain.T @ a["R"] @ gain,
            noise=process @ process.T + (B * law.std**2) @ B.T,
            noise_cost=(a["R"].diagonal() * law.std**2).sum(),
            start=spread @ spread.T + th.outer(mean, mean),
        )


def never(states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:
    """The probability that a step ends an episode that ends by its length alone, (B,)."""
    return states.new_zeros(len(states))


class SearchBed(RegulatorBed):
    """A regulator under the deterministic linear policy u = W x + c, which is searched for: theta is (W, c)."""

    def vec_env(self, n_envs: int) -> VecEnv:
        # One object each: only such slots can begin an episode with a seed of their own, for common random numbers.
        return DummyVecEnv([partial(LQREnv, **self._arguments)] * n_envs)

    def policy_kwargs(self, optimizer_class: type) -> dict[str, Any]:
        return {}  # a search has no optimizer, and its linear policy no layers to choose

    def law(self, net: Net) -> Gaussian:
        K, bias = oracles.affine_gain(net.policy.action_net, self.problem.B.shape[0], dtype=th.float64)
        return Gaussian(K, th.zeros_like(bias), bias)

    def smoothed_gradient(self, net: Net, std: float) -> Tensor:
        """Gradient of E[J(theta + std e)], e ~ N(0, I), (P,).

        J is a polynomial of degree 2 H in theta, so that its gradient, of degree 2 H - 1, is integrated exactly by the
        Gauss-Hermite rule of H nodes in each of the P directions.

        :param std: of the perturbations
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.horizon)
        theta = nn.utils.parameters_to_vector(net.parameters).detach()
        total = th.zeros_like(theta)
        for at in product(range(len(nodes)), repeat=len(theta)):
            nn.utils.vector_to_parameters(theta + std * th.as_tensor(nodes[list(at)]), net.parameters)
            total += (weights / weights.sum())[list(at)].prod() * net.gradient(self.objective(self.law(net)))
        nn.utils.vector_to_parameters(theta, net.parameters)
        return total


class Loop(NamedTuple):
    """A regulator under a policy, for z = (x, 1): z' = F z + noise, cost z' cost z, E[z_0 z_0'] = start."""

    F: Tensor
    cost: Tensor
    noise: Tensor
    noise_cost: Tensor
    start: Tensor


def _padded(factor: Any) -> Tensor:
    """A row of zeros for the constant 1 of the state."""
    factor = th.as_tensor(factor, dtype=th.float64)
    return th.cat([factor, th.zeros(1, factor.shape[1], dtype=th.float64)])


def _bandit() -> Testbed:
    return FiniteBed("bandit", armed_bandit((1.0, 0.5, 0.0), reward_std=0.5))


def _garnet() -> Testbed:
    problem = garnet(n_states=5, n_actions=3, instance=9, horizon=5, gamma=0.7, at_horizon="terminate")
    return FiniteBed("garnet", problem, net_arch={"pi": [4], "vf": []}, spread=1.0)


def _lqr() -> Testbed:
    problem = LQR(
        A=[[1.0, 0.2], [0.0, 0.9]],
        B=[[1.0, 0.0], [0.3, 1.0]],
        Q=[[1.0, 0.2], [0.2, 0.5]],
        R=np.diag([0.5, 1.0]),
        noise_std=0.2,
        start_mean=[1.0, -0.5],
        start_std=0.3,
        horizon=4,
        at_horizon="terminate",
        gamma=0.8,
    )
    centre = {"action_net.weight": [[-0.3, 0.1], [0.0, -0.3]], "log_std": -0.7}
    return RegulatorBed("lqr", problem, spread=0.1, centre=centre)


def _search() -> Testbed:
    problem = LQR(
        A=[[1.0, 0.2], [0.0, 0.9]],
        B=[[0.3], [1.0]],
        Q=[[1.0, 0.2], [0.2, 0.5]],
        R=[[0.5]],
        start_mean=[1.0, -0.5],
        start_std=0.1,
        horizon=4,
        at_horizon="terminate",
        gamma=1.0,  # the returns of candidates are not discounted
        action_bound=100.0,
    )
    return SearchBed("search", problem, spread=0.1, centre={"action_net.0.weight": [[-0.3, -0.1]]})


_MAKERS = (_bandit, _garnet, _lqr, _search)
TESTBEDS: dict[str, Callable[[], Testbed]] = dict(zip(TESTBED_NAMES, _MAKERS, strict=True))


def testbed(name: str) -> Testbed:
    """A testbed by its name.

    :raises ValueError: there is none of that name
    """
    if name not in TESTBEDS:
        raise ValueError(f"testbed={name!r}: allowed are {', '.join(map(repr, TESTBEDS))}")
    return TESTBEDS[name]()


testbed.__test__ = False  # type: ignore[attr-defined]  # nothing for pytest to collect
Testbed.__test__ = False  # type: ignore[attr-defined]
