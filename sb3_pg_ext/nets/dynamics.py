"""Models of an environment: how the state moves, what a step earns, when the episode ends; learned, or known.

All dynamics have one interface, whose noise makes them invertible:

    s' = f(s, a, zeta)   by ``dynamics(s, a, zeta)``,     zeta   by ``dynamics.infer_noise(s, a, s')``

B rows are shared out among the members of an ensemble, the first B / E of them to the first member and so on, so that
every row is imagined by one member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_pg_ext.nets.ensembles import EnsembleMlp

#: Smallest noise, relative to the spread of the targets: below it the noise could not be told from rounding.
LEAST_NOISE = 1e-4


class Standardiser(nn.Module):
    """x -> (x - mean) / std over all rows that :meth:`learn` has seen; entries that never change are only centred.

    :param size: I, numbers in a row
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(size, dtype=th.float64))
        self.register_buffer("square", th.zeros(size, dtype=th.float64))

    @th.no_grad()
    def learn(self, rows: Tensor) -> None:
        """Take (n, I) further rows into account (Chan, Golub & LeVeque 1983)."""
        rows = rows.double()
        n, mean = len(rows), rows.mean(0)
        total = self.count + n
        gap = mean - self.mean
        self.square += (rows - mean).square().sum(0) + gap.square() * self.count * n / total
        self.mean += gap * n / total
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """(I,), float64."""
        std = (self.square / self.count.clamp(min=1)).sqrt()
        return th.where(std > 1e-7 * self.mean.abs().clamp(min=1e-7), std, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., I)."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., I)."""
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)


class Regressor(nn.Module):
    """An ensemble that predicts standardised targets from standardised inputs.

    :param n_inputs: I
    :param n_outputs: O
    :param n_members: E
    :param net_arch: widths of the hidden layers; none makes it linear
    :param activation_fn: between them
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        n_members: int = 1,
        net_arch: Sequence[int] = (64, 64),
        activation_fn: type[nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.n_members = n_members
        self.inputs, self.targets = Standardiser(n_inputs), Standardiser(n_outputs)
        self.net = EnsembleMlp(n_members, n_inputs, n_outputs, net_arch, activation_fn)

    def learn_scales(self, inputs: Tensor, targets: Tensor) -> None:
        """Take (n, I) inputs and (n, O) targets into the statistics by which they are standardised."""
        self.inputs.learn(inputs)
        self.targets.learn(targets)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each member's squared error of standardised targets, (E,).

        :param inputs: (B, I), or (E, B, I) for members that see different rows
        :param targets: (B, O) or (E, B, O)
        """
        errors = self.net(self.inputs(inputs)) - self.targets(targets)
        return errors.square().mean((1, 2))

    def every_member(self, inputs: Tensor) -> Tensor:
        """(B, I) or (E, B, I) -> (E, B, O)."""
        return self.targets.inverse(self.net(self.inputs(inputs)))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I) -> (B, O), each row by its member."""
        return _joined(self.every_member(_shared_out(inputs, self.n_members)), len(inputs))


def _shared_out(rows: Tensor, n_members: int) -> Tensor:
    """(B, I) -> (E, ceil(B / E), I), filled up with zeros."""
    share = -(-len(rows) // n_members)
    return F.pad(rows, (0, 0, 0, share * n_members - len(rows))).reshape(n_members, share, -1)


def _joined(shares: Tensor, n_rows: int) -> Tensor:
    """(E, ceil(B / E), O) -> (B, O)."""
    return shares.flatten(0, 1)[:n_rows]


class GaussianDynamics(Regressor):
    """s' = s + m(s, a) + sigma * zeta,  zeta ~ N(0, I); each member e has an m_e and a sigma_e of its own.

    m is fitted by least squares, which is maximum likelihood whatever sigma is, and sigma is the error that is left on
    data that m was not fitted to.

    :param n_states: S
    :param n_actions: A
    :param kwargs: ``n_members``, ``net_arch``, ``activation_fn`` of :class:`Regressor`
    """

    sigma: Tensor

    def __init__(self, n_states: int, n_actions: int, **kwargs: Any):
        super().__init__(n_states + n_actions, n_states, **kwargs)
        self.noise_size = n_states
        self.register_buffer("sigma", th.ones(self.n_members, n_states))

    def mean(self, states: Tensor, actions: Tensor) -> Tensor:
        """s + m(s, a), (B, S)."""
        return states + Regressor.forward(self, th.cat([states, actions], 1))

    def forward(self, states: Tensor, actions: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """f(s, a, zeta): (B, S), (B, A), (B, S) -> (B, S)."""
        return self.mean(states, actions) + self._sigma_of_rows(noise) * noise

    def infer_noise(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:
        """The zeta with f(s, a, zeta) = s', (B, S)."""
        return (next_states - self.mean(states, actions)) / self._sigma_of_rows(next_states)

    def sample_noise(self, horizon: int, n_rows: int) -> Tensor:
        """zeta of H steps, (H, B, S)."""
        return th.randn(horizon, n_rows, self.noise_size, dtype=self.sigma.dtype, device=self.sigma.device)

    def _sigma_of_rows(self, like: Tensor) -> Tensor:
        share = -(-len(like) // self.n_members)
        return self.sigma.repeat_interleave(share, 0)[: len(like)]

    @th.no_grad()
    def learn_sigma(self, inputs: Tensor, targets: Tensor) -> None:
        """Set sigma_e to the root mean square of member e's errors on rows (n, S + A), (n, S) it was not fitted to."""
        errors = (self.every_member(inputs) - targets).double()  # whose squares may be too large for float32
        self.sigma.copy_(errors.square().mean(1).sqrt().maximum(LEAST_NOISE * self.targets.std))

    @th.no_grad()
    def log_likelihood(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean log density of the rows (n, S + A), (n, S) under each member, (E,), in nats a row."""
        law = th.distributions.Normal(self.every_member(inputs), self.sigma.unsqueeze(1))
        return law.log_prob(targets).sum(2).mean(1)


class RewardModel(Regressor):
    """r(s, a, s').

    :param n_states: S
    :param n_actions: A
    :param kwargs: as for :class:`GaussianDynamics`
    """

    def __init__(self, n_states: int, n_actions: int, **kwargs: Any):
        super().__init__(2 * n_states + n_actions, 1, **kwargs)

    def forward(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:  # type: ignore[override]
        """(B, S), (B, A), (B, S) -> (B,)."""
        return Regressor.forward(self, th.cat([states, actions, next_states], 1)).squeeze(1)


class TerminationModel(Regressor):
    """p(s, a, s'), the probability that a step ends the episode; 0 as long as none was seen to.

    :param n_states: S
    :param n_actions: A
    :param kwargs: as for :class:`GaussianDynamics`
    """

    def __init__(self, n_states: int, n_actions: int, **kwargs: Any):
        super().__init__(2 * n_states + n_actions, 1, **kwargs)

    @property
    def has_seen_an_end(self) -> bool:
        """Whether any target was 1."""
        return bool(self.targets.mean.item() > 0)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each member's cross entropy, (E,), of inputs (B, I) or (E, B, I) and targets 0 or 1, of the same shape."""
        logits = self.net(self.inputs(inputs))
        targets = targets.expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))

    def forward(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:  # type: ignore[override]
        """(B, S), (B, A), (B, S) -> (B,)."""
        if not self.has_seen_an_end:
            return states.new_zeros(len(states))
        inputs = _shared_out(self.inputs(th.cat([states, actions, next_states], 1)), self.n_members)
        return _joined(self.net(inputs), len(states)).squeeze(1).sigmoid()


class KnownDynamics:
    """Dynamics that need no learning, with the interface of those that are learned.

    Their noise (B, k + S) has two parts: the k standard normals of a step of the environment's own, and what is left
    between its mean step and the state that was really reached. Drawn noise has only the first part, noise inferred
    from a transition only the second.

    :param source: an environment with the methods of ``sb3_pg_ext.envs.differentiable.DifferentiableEnv``, wrapped or
        not, or a differentiable function from observations (B, S) and actions (B, A) to next observations (B, S)
    :param n_states: S
    :raises TypeError: it is neither
    """

    def __init__(self, source: Any, n_states: int):
        env = equations_of(source)
        if env is None and not callable(source):
            raise TypeError(
                f"dynamics={source!r}: an environment with dynamics(), observe() and state_of(), or a function "
                "(observations, actions) -> next observations is needed"
            )
        self.step: Callable[[Tensor, Tensor, Tensor], Tensor]
        self.own_size, self.n_states = 0, n_states
        if env is None:
            self.step = lambda obs, action, _: of_batch("dynamics", source(obs, action), obs.shape)
        else:
            self.own_size = int(th.Size(env.noise_shape).numel())
            self.step = lambda obs, action, noise: env.observe(
                env.dynamics(env.state_of(obs), action, noise.reshape(len(noise), *env.noise_shape))
            )
        self.noise_size = self.own_size + n_states

    def __call__(self, states: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """f(s, a, zeta): (B, S), (B, A), (B, k + S) -> (B, S)."""
        own, rest = noise.split([self.own_size, self.n_states], 1)
        return self.step(states, actions, own) + rest

    def infer_noise(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:
        """The zeta with f(s, a, zeta) = s' whose own part is 0, (B, k + S)."""
        none = states.new_zeros(len(states), self.own_size)
        return th.cat([none, next_states - self.step(states, actions, none)], 1)

    def sample_noise(self, horizon: int, n_rows: int) -> Tensor:
        """zeta of H steps, (H, B, k + S), float64."""
        own = th.randn(horizon, n_rows, self.own_size, dtype=th.float64)
        return F.pad(own, (0, self.n_states))


def of_batch(name: str, given: Any, shape: Sequence[int]) -> Tensor:
    """What the function ``name`` of a user has given for a batch.

    :raises ValueError: it is no tensor of ``shape``; broadcasting would make something else of it without a word
    """
    if not isinstance(given, Tensor) or given.shape != tuple(shape):
        found = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise ValueError(f"{name} gave {found}, but a tensor of shape {tuple(shape)} is needed")
    return given


def equations_of(source: Any) -> Any:
    """The environment inside the wrappers, if its equations are known; else None."""
    inner = getattr(source, "unwrapped", source)
    known = all(callable(getattr(inner, name, None)) for name in ("dynamics", "observe", "state_of"))
    return inner if known else None
