"""The on-policy family: collect with the current policy, update once, throw the data away."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from sb3_pg_ext.bases.drop_in import DropIn, check_total_timesteps
from sb3_pg_ext.bases.options import check_count, check_learning_rate, check_number, reject_unknown
from sb3_pg_ext.functional import returns
from sb3_pg_ext.rollout import guards
from sb3_pg_ext.rollout.collector import EpisodeQueue, run, whole_number_of_steps
from sb3_pg_ext.rollout.episodes import Rollout, Steps, whole_episodes, window

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class OnPolicyBase(DropIn, OnPolicyAlgorithm):
    """Base of the on-policy algorithms: :meth:`update` is all that one of them has to write.

    :param policy: MlpPolicy, CnnPolicy, MultiInputPolicy or a policy class
    :param env: environment id, gymnasium env, SB3 ``VecEnv`` or gymnasium ``VectorEnv``
    :param learning_rate: step size, or a schedule of the remaining progress (1 to 0)
    :param n_steps: steps per env and rollout
    :param n_episodes: episodes per rollout in all; None goes by ``n_steps``
    :param gamma: discount per step
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss
    :param max_grad_norm: each loss's gradient is clipped to this norm; ``float("inf")`` switches it off
    :param use_sde: generalised state-dependent exploration (Box actions)
    :param sde_sample_freq: steps between two draws of its noise matrix; -1 draws once a rollout
    :param rollout_buffer_class: storage of the collected steps, a subclass of ``sb3_pg_ext.rollout.episodes.Steps``
    :param rollout_buffer_kwargs: its further keyword arguments
    :param stats_window_size: episodes over which the logged returns are averaged
    :param tensorboard_log: folder for tensorboard; None writes nothing
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 nothing, 1 tables, 2 debug messages
    :param seed: of python, numpy, torch, the environment and the exploration noise
    :param device: "auto", "cpu", "cuda", ...
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    #: Whether a rollout consists of whole episodes or of exactly ``n_steps`` steps per env.
    whole_episodes: ClassVar[bool] = False
    #: Rollouts between two logs, unless :meth:`learn` is told otherwise; more for algorithms whose rollouts are short.
    usual_log_interval: ClassVar[int] = 1
    #: Storage of the collected steps, unless ``rollout_buffer_class`` names another.
    steps_class: ClassVar[type[Steps]] = Steps
    rollout: Rollout

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule,
        *,
        n_steps: int,
        n_episodes: int | None = None,
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[Steps] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ):
        reject_unknown(type(self), unknown)
        check_learning_rate(learning_rate)
        check_count("n_steps", n_steps)
        check_count("n_episodes", n_episodes, optional=True)
        check_number("gamma", gamma, 0, 1)
        check_number("gae_lambda", gae_lambda, 0, 1)
        check_number("ent_coef", ent_coef, 0)
        check_number("vf_coef", vf_coef, 0)
        check_number("max_grad_norm", max_grad_norm, 0, np.inf, above=True)
        check_count("stats_window_size", stats_window_size)
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate if callable(learning_rate) else float(learning_rate),
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=ACTION_SPACES,
            _init_setup_model=False,
        )
        self.n_episodes = n_episodes
        self._rollout_length = n_steps
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._restore_rng()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        self.rollout_buffer = None  # type: ignore[assignment]  # SB3's loop hands it round; ours is self.rollout
        self._new_steps()  # wrong rollout_buffer_kwargs are an error now, not after the first rollout
        self._maybe_recommend_cpu()

    def _new_steps(self) -> Steps:
        dtype = np.float64 if next(self.policy.parameters()).dtype == th.float64 else np.float32
        steps_class: Any = self.rollout_buffer_class or self.steps_class
        return steps_class(
            self.observation_space,
            self.action_space,
            self.n_envs,
            capacity=self._rollout_length,
            dtype=dtype,
            **self.rollout_buffer_kwargs,
        )

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *_: Any, **__: Any) -> bool:
        """Fill :attr:`rollout` with whole episodes or with ``n_steps`` steps per env.

        :return: False if the callback stopped the training
        """
        steps = self._new_steps()
        if not self.whole_episodes:
            going_on = run(self, env, callback, steps, whole_number_of_steps(self.n_steps))
            if going_on:
                self.rollout = window(steps, self._last_obs, self.device)
            return going_on
        if not np.all(self._last_episode_starts):
            # A slot that idled at the end of the last rollout, or was stopped in mid-episode, begins afresh.
            self._last_obs = guards.reset(env, self.num_timesteps)
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        queue = EpisodeQueue(
            env.num_envs, self.n_steps, self.n_episodes, self._least_episodes(), budget=self._total_timesteps
        )
        going_on = run(self, env, callback, steps, queue)
        if going_on:
            self.rollout = whole_episodes(steps, queue.bounds, self.device)
            self._rollout_length = steps.size
            self.logger.record("rollout/used_share", self.rollout.live.sum().item() / self.rollout.collected)
        return going_on

    def _least_episodes(self) -> int:
        """Fewest episodes from which the algorithm can learn."""
        return 1

    def train(self) -> None:
        """One update from the rollout just collected."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.update(self.rollout)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def update(self, rollout: Rollout) -> None:
        """The algorithm: change ``self.policy`` by what ``rollout`` shows."""
        raise NotImplementedError

    def evaluate(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """V(s), log pi(a|s) and the entropy of pi(.|s) for all steps, each (B,), in one pass.

        Where the entropy has no closed form (squashed actions) -log pi(a|s) stands in for it.
        """
        values, log_prob, entropy = self.policy.evaluate_actions(rollout.observations, rollout.actions)
        return values.flatten(), log_prob, -log_prob if entropy is None else entropy

    def evaluate_actor(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """log pi(a|s) and entropy as in :meth:`evaluate`, without the critic."""
        return log_prob_and_entropy(self.policy.get_distribution(rollout.observations), rollout.actions)

    def cut_values(self, rollout: Rollout) -> Tensor:
        """V of the observations after which the future is unknown, padded (T, M); 0 elsewhere. Without gradient."""
        if rollout.cut_observations is None:
            return th.zeros_like(rollout.rewards)
        with th.no_grad():
            obs, _ = self.policy.obs_to_tensor(rollout.cut_observations)
            return rollout.pad_cut(self.policy.predict_values(obs).flatten())

    def gae(self, rollout: Rollout, values: Tensor) -> tuple[Tensor, Tensor]:
        """GAE(lambda) advantages and the TD(lambda) targets of the critic, both (B,), from V(s) (B,) without gradient.

        ``gae_lambda = 1`` gives the Monte-Carlo return minus V(s), and the Monte-Carlo return.
        """
        r, c, v = rollout.rewards, rollout.continues, rollout.pad(values)
        next_values = returns.successor_values(v, c, self.cut_values(rollout))
        advantages = rollout.flatten(returns.gae(r, c, v, next_values, self.gamma, self.gae_lambda))
        return advantages, advantages + values

    def descend(self, **losses: Tensor) -> None:
        """One step of each of :meth:`_optimizers` down the sum of ``losses``.

        Each loss's gradient is clipped to ``max_grad_norm`` by itself: however wrong the critic is, it cannot drown the
        policy gradient. Nothing changes if any gradient is not finite.

        :raises NonFiniteError: naming the loss
        """
        optimizers = self._optimizers()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        total: list[Tensor | None] = [None] * len(parameters)
        for name, loss in losses.items():
            gradients = th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            present = [g for g in gradients if g is not None]
            norm = nn.utils.get_total_norm(present).item()
            self._check_gradient(name, loss, norm)
            scale = min(1.0, self.max_grad_norm / (norm + 1e-6))
            total = [_add_scaled(t, g, scale) for t, g in zip(total, gradients, strict=True)]
            self.logger.record(f"train/{name}_grad_norm", norm)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()

    def _optimizers(self) -> list[th.optim.Optimizer]:
        """What :meth:`descend` steps: an algorithm with nets beside its policy names theirs as well."""
        return [self.policy.optimizer]

    def record(self, **values: Any) -> None:
        """Log ``train/<name>``; tensors are turned into numbers."""
        for name, value in values.items():
            self.logger.record(f"train/{name}", value.item() if isinstance(value, Tensor) else value)

    def record_fit(self, values: Tensor, targets: Tensor) -> None:
        """Log how much of the targets' variance the critic explains."""
        values, targets = values.detach().double(), targets.double()  # whose squares may be too large for float32
        with np.errstate(invalid="ignore"):  # infinite targets: descend() says what is wrong
            self.record(explained_variance=explained_variance(values.cpu().numpy(), targets.cpu().numpy()))

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = -1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least ``total_timesteps`` env steps.

        :param total_timesteps: env steps over all env slots, a lower bound
        :param callback: called after every env step
        :param log_interval: rollouts between two logs; None never logs by itself, -1 is :attr:`usual_log_interval`
        :param tb_log_name: name of the tensorboard run, the class name by default
        :param reset_num_timesteps: False continues the count, and the learning-rate schedule, of an earlier call
        :param progress_bar: show one
        """
        check_total_timesteps(total_timesteps)
        return super().learn(
            total_timesteps,
            callback,
            self.usual_log_interval if log_interval == -1 else log_interval,  # type: ignore[arg-type]
            tb_log_name or type(self).__name__,
            reset_num_timesteps,
            progress_bar,
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout", "_rollout_length"]


def log_prob_and_entropy(distribution: Any, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(a|s) and the entropy of pi(.|s) of an SB3 distribution, each (B,), as in :meth:`OnPolicyBase.evaluate`."""
    log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
    return log_prob, -log_prob if entropy is None else entropy


def _add_scaled(total: Tensor | None, gradient: Tensor | None, scale: float) -> Tensor | None:
    if gradient is None:
        return total
    return gradient * scale if total is None else total.add_(gradient, alpha=scale)


class LogDensity(nn.Module):
    """log pi(a|s) of an SB3 policy as a module of its own, for :mod:`torch.func`."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any, actions: Tensor) -> Tensor:
        with _unchecked():
            return self.policy.get_distribution(obs).log_prob(actions)


class _unchecked:
    """torch checks the arguments of distributions and of ``one_hot`` by branching on data, which vmap cannot do."""

    def __enter__(self) -> None:
        self.before = Distribution._validate_args, F.one_hot
        Distribution.set_default_validate_args(False)
        F.one_hot = _one_hot  # type: ignore[assignment]

    def __exit__(self, *_: Any) -> None:
        validate_args, F.one_hot = self.before
        Distribution.set_default_validate_args(validate_args)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return (labels.unsqueeze(-1) == th.arange(num_classes, device=labels.device)).long()
