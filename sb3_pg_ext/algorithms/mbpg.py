"""MBPG, the policy gradient by back-propagation through a model: collect, fit, imagine, repeat.

    grad J = E[ grad ( sum_{t<H} gamma^t r(s_t, a_t, s_{t+1}) + gamma^H V(s_H) ) ]
    a_t = pi(s_t, z_t),   s_{t+1} = f(s_t, a_t, zeta_t),   z_t, zeta_t ~ N(0, I)

with f fitted to the transitions so far and held fixed, or known: the value gradients of Heess et al. 2015 with noise
that is drawn instead of inferred.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.model_based import ModelBasedBase, ModelBasedOptions
from sb3_pg_ext.bases.options import check_choice, check_count, check_number
from sb3_pg_ext.bases.world_model import Columns
from sb3_pg_ext.functional.imagine import Imagined
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus

Bootstrap = Literal["value"]
Starts = Literal["visited", "first"]


class MBPG(ModelBasedBase):
    """Model-based policy gradient: back-propagation through trajectories that an ensemble of models imagines.

    Each imagined trajectory belongs to one member of the ensemble. With known ``dynamics`` nothing has to be fitted.

    :param n_steps: steps per env and update
    :param horizon: H, imagined steps
    :param bootstrap: ``"value"``: V(s_H), fitted to the imagined returns, continues the return; None: nothing does
    :param starts: imagined trajectories begin at any state that was ``"visited"``, or at the ``"first"`` states of
        episodes; with ``"first"``, no bootstrap and H the length of an episode the gradient is that of the return
    :param gradient_steps: batches of imagined trajectories per update
    :param batch_size: trajectories in a batch
    :param tau: share of the value that the target value, by which returns are continued, takes per batch
    """

    has_target: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 200,
        horizon: int = 10,
        bootstrap: Bootstrap | None = "value",
        starts: Starts = "visited",
        gradient_steps: int = 50,
        batch_size: int = 128,
        tau: float = 0.02,
        **common: Unpack[ModelBasedOptions],
    ):
        check_count("horizon", horizon)
        check_choice("bootstrap", bootstrap, Bootstrap | None)
        check_choice("starts", starts, Starts)
        check_count("gradient_steps", gradient_steps)
        check_count("batch_size", batch_size)
        check_number("tau", tau, 0, 1)
        self.horizon = horizon
        self.bootstrap = bootstrap
        self.starts = starts
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.tau = tau
        super().__init__(policy, env, learning_rate, n_steps=n_steps, **common)

    def improve(self, rollout: Rollout, columns: Columns) -> None:
        starts = self.transitions.columns["states"]
        if self.starts == "first":
            starts = starts[self.transitions.columns["first"]]
        if not len(starts):
            return
        for _ in range(self.gradient_steps):
            index = th.from_numpy(self.rng.integers(len(starts), size=self.batch_size))
            self.step(self.imagined_from(starts[index.to(starts.device)]))
            self._follow(self.tau)

    def imagined_from(self, start: Tensor) -> Imagined:
        """Trajectories from ``start`` (B, S) with fresh noise."""
        size = (self.horizon, len(start))
        z = th.randn(*size, len(self.pathwise.low), dtype=start.dtype, device=start.device)
        zeta = self.world.dynamics.sample_noise(*size).to(start)
        return self.imagined(start, z, zeta, value=self.target.value if self.bootstrap else None)

    def step(self, imagined: Imagined) -> None:
        """One step of policy and value."""
        start = imagined.states[0]
        policy_loss = -imagined.returns.mean()
        entropy = self.pathwise.entropy(imagined.states[:-1].detach().flatten(0, 1)).mean()
        losses = {"policy": policy_loss - self.ent_coef * entropy}
        if self.bootstrap:
            values, targets = self.pathwise.value(start), imagined.returns.detach()
            losses["value"] = self.vf_coef * F.mse_loss(values, targets)
            self.record_fit(values, targets)
            self.record(value_loss=losses["value"])
        self.descend(**losses)
        self.record(policy_loss=policy_loss, entropy_loss=-entropy)


SPEC = AlgorithmSpec(
    MBPG,
    family="model_based",
    paper="Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015, Learning continuous control policies by stochastic "
    "value gradients, section 4, with imagined noise; Deisenroth & Rasmussen 2011, PILCO, for the cycle",
    action_spaces=("Box",),
    policies=("MlpPolicy",),
    space={
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "gamma": OneMinus(1e-3, 0.1),
        "n_steps": Int(5, 9, power=2),
        "horizon": Choice(1, 2, 3, 5, 10, 20),
        "gradient_steps": Int(4, 8, power=2),
        "batch_size": Int(5, 9, power=2),
        "tau": Float(1e-3, 0.1, log=True),
        "ent_coef": Float(1e-4, 1.0, log=True),
        "max_grad_norm": Float(0.3, 100.0, log=True),
        "n_models": Int(1, 7),
        "model_net_arch": Choice([], [64, 64], [128, 128]),
        "model_learning_rate": Float(3e-4, 1e-2, log=True),
        "policy_kwargs.net_arch": Choice([], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim(
            "known equations",
            {
                "dynamics": "testbed:dynamics",
                "termination_fn": "testbed:termination",
                "horizon": "testbed:horizon",
                "batch_size": "testbed:episodes",
                "starts": "first",
                "bootstrap": None,
                "gradient_steps": 1,
            },
            kind="pathwise",
        ),
    ),
)
