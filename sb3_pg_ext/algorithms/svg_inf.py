"""SVG(inf), the stochastic value gradient of whole trajectories (Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015).

    zeta_t = s_{t+1} - f(s_t, a_t),   z_t = (a_t - mu(s_t)) / sigma(s_t)   inferred from a real trajectory, then frozen

    grad J = E[ grad sum_t gamma^t r(s_t, a_t) ],   a_t = pi(s_t, z_t),   s_{t+1} = f(s_t, a_t) + zeta_t

by back-propagation through time. With the inferred noise the model repeats the real trajectory, so its errors do not
pile up: it only carries the gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.model_based import ModelBasedBase, ModelBasedOptions
from sb3_pg_ext.bases.options import check_count
from sb3_pg_ext.bases.world_model import Columns
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus


class Segments(NamedTuple):
    """K pieces of real trajectories, of H steps each, and the noise in them.

    :param start: their first states, (K, S)
    :param z: noise of the policy, (H, K, A)
    :param zeta: noise of the model, (H, K, k)
    :param live: (H, K) bool, whether the step exists
    :param reached: the states that the steps really led to, (H, K, S)
    """

    start: Tensor
    z: Tensor
    zeta: Tensor
    live: Tensor
    reached: Tensor


class SVGInf(ModelBasedBase):
    """SVG(inf): back-propagation through time along real trajectories, all of whose noise was inferred.

    No value is learned: a time limit is part of the task, and what would come after it counts as 0. ``vf_coef`` has no
    effect.

    :param n_steps: steps per env and update, at least; every episode that was begun is finished
    :param n_episodes: episodes per update in all, at least one per env; overrides ``n_steps``
    :param horizon: None follows whole episodes, which gives the exact gradient of the discounted return. A number cuts
        them into pieces of so many steps, at places drawn anew for each update: no reward then reaches further back
        than its piece, which is biased, but bounds the growth of the gradient, and each piece is discounted from its
        own start
    :param n_epochs: gradient steps per update, all with the noise inferred before the first one
    """

    whole_episodes: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 200,
        n_episodes: int | None = None,
        horizon: int | None = None,
        n_epochs: int = 1,
        **common: Unpack[ModelBasedOptions],
    ):
        check_count("horizon", horizon, optional=True)
        check_count("n_epochs", n_epochs)
        self.horizon = horizon
        self.n_epochs = n_epochs
        super().__init__(policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, **common)

    def improve(self, rollout: Rollout, columns: Columns) -> None:
        pieces = self.segments(rollout, columns)
        observed = columns["states"][rollout.places]
        for epoch in range(self.n_epochs):
            returns, states = self.replayed(pieces)
            if epoch == 0:
                error = (states[1:] - pieces.reached)[pieces.live].abs().max()
                self.logger.record("svg/reconstruction_error", error.item())
            entropy = self.pathwise.entropy(observed).mean()
            policy_loss = -returns.mean()
            self.descend(policy=policy_loss - self.ent_coef * entropy)
        self.record(policy_loss=policy_loss, entropy_loss=-entropy)

    def replayed(self, pieces: Segments) -> tuple[Tensor, Tensor]:
        """Discounted returns (K,) and states (H + 1, K, S) of the pieces, as functions of the policy's parameters."""
        imagined = self.imagined(pieces.start, pieces.z, pieces.zeta, termination=None, live=pieces.live)
        return imagined.returns, imagined.states

    def segments(self, rollout: Rollout, columns: Columns) -> Segments:
        """Cut the episodes into pieces of ``horizon`` steps and infer their noise.

        :param rollout: whole episodes, one a column of M
        :param columns: transitions (T, N, ...), of which ``rollout.places`` are those of the rollout
        """
        length = len(rollout.live)
        horizon = self.horizon or length
        before = 0 if self.horizon is None else int(self.rng.integers(horizon))
        after = -(before + length) % horizon

        def pieces(padded: Tensor) -> Tensor:
            """(T, M, ...) -> (H, K, ...), with empty steps before and after."""
            rows = F.pad(padded.movedim(0, -1), (before, after)).movedim(-1, 0)
            return rows.unflatten(0, (-1, horizon)).movedim(0, 1).flatten(1, 2)[:, exists]

        exists: Any = slice(None)
        live = pieces(rollout.live)
        exists = live.any(0)
        states, actions, reached = (
            pieces(rollout.pad(columns[name][rollout.places])) for name in ("states", "actions", "next_states")
        )
        # Step by step, so that each piece belongs to one member of an ensemble.
        noises = [self.infer_noise(*step) for step in zip(states, actions, reached, strict=True)]
        z, zeta = (th.stack(part) for part in zip(*noises, strict=True))
        live = live[:, exists]
        first = live.to(th.int8).argmax(0)
        return Segments(states[first, th.arange(len(first), device=first.device)], z, zeta, live, reached)


SPEC = AlgorithmSpec(
    SVGInf,
    family="model_based",
    paper="Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015, Learning continuous control policies by stochastic "
    "value gradients, algorithm 1",
    action_spaces=("Box",),
    policies=("MlpPolicy",),
    space={
        "learning_rate": Float(1e-4, 1e-1, log=True),
        "gamma": OneMinus(1e-3, 0.1),
        "n_steps": Int(7, 10, power=2),
        "horizon": Choice(None, 5, 10, 20, 50),
        "n_epochs": Int(1, 20, log=True),
        "ent_coef": Float(1e-4, 1.0, log=True),
        "max_grad_norm": Float(0.3, 100.0, log=True),
        "model_net_arch": Choice([], [64, 64], [128, 128]),
        "model_learning_rate": Float(3e-4, 1e-2, log=True),
        "policy_kwargs.net_arch": Choice([], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim(
            "known equations",
            {"dynamics": "testbed:dynamics", "termination_fn": "testbed:termination"},
            kind="pathwise",
        ),
    ),
)
