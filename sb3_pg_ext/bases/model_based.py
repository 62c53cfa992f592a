"""The model-based family: collect with the policy, learn how the environment works, follow imagined value gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, polyak_update, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_pg_ext.bases.given_parts import check_given_parts
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.bases.options import OnPolicyOptions, check_count, check_learning_rate, check_number
from sb3_pg_ext.bases.world_model import Columns, OfTransition, WorldModel
from sb3_pg_ext.functional.imagine import Imagined, imagine
from sb3_pg_ext.nets.dynamics import equations_of
from sb3_pg_ext.nets.pathwise import PathwisePolicy, state_size
from sb3_pg_ext.rollout.episodes import Rollout, Steps
from sb3_pg_ext.rollout.transitions import StepsWithEnds, Transitions

HOOKS = ("dynamics", "reward_fn", "termination_fn")


class ModelBasedOptions(OnPolicyOptions, total=False):
    """Keyword arguments of every model-based algorithm."""

    dynamics: Any
    reward_fn: OfTransition | None
    termination_fn: OfTransition | None
    n_models: int
    model_net_arch: Sequence[int]
    model_learning_rate: float | Schedule
    model_batch_size: int
    model_epochs: int
    model_patience: int
    holdout: float
    buffer_size: int


class ModelBasedBase(OnPolicyBase):
    """Base of the algorithms that differentiate through a model: :meth:`improve` is all that one of them has to write.

    What the model does not know is learned from the last ``buffer_size`` transitions, after every rollout. The user
    may give any part of it. Functions get tensors: observations (B, S) as the policy sees them, and actions (B, A) as
    the environment does. They are not saved with the model: give them to ``load`` again to train on. After the first
    rollout they are compared with it, and a function that does not agree is a warning.

    :param dynamics: an environment with known equations (``sb3_pg_ext.envs.differentiable.DifferentiableEnv``), which
        knows its rewards as well, or a function of (observation, action) to the next observation; None learns it
    :param reward_fn: reward of (observation, action, next observation), (B,), differentiable; None learns it
    :param termination_fn: probability that such a step ends the episode, (B,); None learns it
    :param n_models: members of the ensemble of dynamics models
    :param model_net_arch: hidden layers of every model; none makes the models linear
    :param model_learning_rate: step size of the models, or a schedule of the remaining progress (1 to 0)
    :param model_batch_size: transitions in a minibatch of a model's regression
    :param model_epochs: epochs of a fit, at most
    :param model_patience: a fit stops when so many epochs have not improved any member on the holdout
    :param holdout: share of the transitions that no model is fitted to
    :param buffer_size: transitions that are kept
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ActorCriticPolicy}
    steps_class: ClassVar[type[Steps]] = StepsWithEnds
    #: Whether a copy of the policy follows it, whose value continues the returns.
    has_target: ClassVar[bool] = False
    pathwise: PathwisePolicy
    transitions: Transitions
    world: WorldModel
    target: PathwisePolicy
    target_policy: Any
    _steps: Any
    _parts_checked = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule,
        *,
        n_steps: int,
        n_episodes: int | None = None,
        dynamics: Any = None,
        reward_fn: OfTransition | None = None,
        termination_fn: OfTransition | None = None,
        n_models: int = 1,
        model_net_arch: Sequence[int] = (64, 64),
        model_learning_rate: float | Schedule = 1e-3,
        model_batch_size: int = 256,
        model_epochs: int = 5,
        model_patience: int = 1,
        holdout: float = 0.1,
        buffer_size: int = 20_000,
        **common: Unpack[OnPolicyOptions],
    ):
        check_count("n_models", n_models)
        _check_widths("model_net_arch", model_net_arch)
        check_learning_rate(model_learning_rate, "model_learning_rate")
        check_count("model_batch_size", model_batch_size)
        check_count("model_epochs", model_epochs)
        check_count("model_patience", model_patience)
        check_number("holdout", holdout, 0, 0.9)
        check_count("buffer_size", buffer_size)
        for name, hook in (("reward_fn", reward_fn), ("termination_fn", termination_fn)):
            if hook is not None and not callable(hook):
                raise TypeError(f"{name}={hook!r}: a function (observations, actions, next observations) is needed")
        steps_class = common.get("rollout_buffer_class")
        if steps_class is not None and not issubclass(steps_class, StepsWithEnds):
            raise TypeError(
                f"rollout_buffer_class={steps_class!r}: a model is learned from the last transition of an episode as "
                "well, so a subclass of sb3_pg_ext.rollout.transitions.StepsWithEnds is needed"
            )
        if (gae_lambda := common.get("gae_lambda", 1.0)) != 1.0:
            raise ValueError(f"gae_lambda={gae_lambda}: gradients go through the model, not advantages; it must be 1")
        self.dynamics, self.reward_fn, self.termination_fn = dynamics, reward_fn, termination_fn
        self.n_models = n_models
        self.model_net_arch = model_net_arch
        self.model_learning_rate = model_learning_rate
        self.model_batch_size = model_batch_size
        self.model_epochs = model_epochs
        self.model_patience = model_patience
        self.holdout = holdout
        self.buffer_size = buffer_size
        self._given = [name for name in HOOKS if getattr(self, name) is not None]
        if equations_of(dynamics) is not None and reward_fn is None:
            self._given.append("reward_fn")
        super().__init__(policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, **common)

    def _setup_model(self) -> None:
        if not isinstance(self.action_space, spaces.Box):
            raise ValueError(
                f"action_space={self.action_space}: {type(self).__name__} differentiates the model in the action, so "
                "it supports Box action spaces only"
            )
        n_states, n_actions = state_size(self.observation_space), int(np.prod(self.action_space.shape))
        super()._setup_model()
        self.pathwise = PathwisePolicy(self.policy)
        self.transitions = Transitions(self.buffer_size)
        self.model_lr_schedule = FloatSchedule(self.model_learning_rate)
        self.world = WorldModel(
            n_states,
            n_actions,
            self._given,
            self.dynamics,
            self.reward_fn,
            self.termination_fn,
            self.n_models,
            self.model_net_arch,
            self.model_lr_schedule(1),
        ).to(self.device)
        if self.has_target:
            self.target = self._new_target()

    def _check_hooks(self) -> None:
        env_knows_reward = equations_of(self.dynamics) is not None
        for name in self._given:
            if getattr(self, name) is None and not (name == "reward_fn" and env_knows_reward):
                raise ValueError(
                    f"{name}=None, but this model was trained with one; functions are not saved: "
                    f"give it again, {type(self).__name__}.load(path, env, {name}=...)"
                )
        normalize = self.get_vec_normalize_env()
        if normalize is not None and self._given and (normalize.norm_obs or normalize.norm_reward):
            raise ValueError(
                f"{' and '.join(self._given)} in an env with VecNormalize: what is given knows the environment's own "
                "observations and rewards, not normalised ones. Use VecNormalize(norm_obs=False, norm_reward=False), "
                "or none, or learn the model"
            )

    def infer_noise(self, states: Tensor, actions: Tensor, next_states: Tensor) -> tuple[Tensor, Tensor]:
        """The z (B, A) and zeta (B, k) with which policy and model repeat a transition; they carry no gradient.

        :param actions: as the policy sampled them, (B, A)
        """
        with th.no_grad():
            executed = self.pathwise.executed(actions)
            z = self.pathwise.infer_noise(states, actions)
            return z, self.world.dynamics.infer_noise(states, executed, next_states)

    def imagined(self, start: Tensor, action_noise: Tensor, model_noise: Tensor, **options: Any) -> Imagined:
        """The policy in the model from ``start`` (B, S), with noise (H, B, A) and (H, B, k); actions are executed ones.

        :param options: as for :func:`sb3_pg_ext.functional.imagine.imagine`
        """

        def policy(states: Tensor, z: Tensor) -> Tensor:
            return self.pathwise.executed(self.pathwise(states, z))

        world = self.world
        chain = {"termination": world.termination, **options}
        return imagine(start, policy, world.dynamics, world.reward, self.gamma, action_noise, model_noise, **chain)

    def _new_target(self) -> PathwisePolicy:
        """A copy of the policy whose value follows that of the policy; to be saved as ``target_policy``."""
        with th.random.fork_rng(devices=[]):
            self.target_policy = self.policy_class(
                self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
            ).to(self.device)
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.target_policy.optimizer = None
        return PathwisePolicy(self.target_policy)

    @th.no_grad()
    def _follow(self, tau: float) -> None:
        """Move the target's parameters by the share ``tau`` towards the policy's; running statistics are taken over."""
        polyak_update(self.policy.parameters(), self.target_policy.parameters(), tau)
        for own, target in zip(self.policy.buffers(), self.target_policy.buffers(), strict=True):
            target.copy_(own)

    # The cycle

    def _new_steps(self) -> Steps:
        self._steps = super()._new_steps()
        return self._steps

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *_: Any, **__: Any) -> bool:
        self._check_hooks()
        begins = np.ones(self.n_envs) if self.whole_episodes else self._last_episode_starts
        self._first = np.array(begins, dtype=bool)[None]
        return super().collect_rollouts(env, callback)

    def update(self, rollout: Rollout) -> None:
        columns = self._transitions_of(self._steps)
        if not self._parts_checked:
            check_given_parts(self.world, columns, self._given)
            self._parts_checked = True
        new = {name: column.flatten(0, 1) for name, column in columns.items()}
        if len(self.transitions):
            self._record_model(self.world.errors_ahead(columns))  # of a model that has not seen these data
        self.transitions.add(**new)
        self._learn_world(new)
        self.improve(rollout, columns)

    def _learn_world(self, new: Columns) -> None:
        rate = self._scheduled("model_learning_rate", self.model_lr_schedule)
        for model in self.world.learned.values():
            update_learning_rate(model.optimizer, rate)
        settings = {"batch_size": self.model_batch_size, "n_epochs": self.model_epochs, "patience": self.model_patience}
        self._record_model(self.world.learn(new, self.transitions.columns, self.rng, **settings))
        self.record(model_learning_rate=rate)

    def _record_model(self, found: dict[str, float]) -> None:
        for name, value in found.items():
            self.logger.record(f"model/{name}", value)

    def improve(self, rollout: Rollout, columns: Columns) -> None:
        """The algorithm: change ``self.policy``.

        :param rollout: the steps just collected
        :param columns: the same as transitions (T, N, ...); ``rollout.places`` says where each step stands in them
        """
        raise NotImplementedError

    def _transitions_of(self, steps: StepsWithEnds) -> Columns:
        """All stored steps as columns (T, N, ...).

        ``states``, ``next_states`` (S), ``actions`` (A) as sampled, ``executed`` (A), ``rewards``, ``log_probs`` of the
        actions when they were taken, and whether a transition ``terminated`` an episode, was the ``first`` of one,
        ``continues`` with the next row, and is ``held_out`` of every fit.
        """
        shape = (steps.size, steps.n_envs)

        def rows(array: Any) -> Tensor:
            return th.from_numpy(np.ascontiguousarray(array)).to(self.device).flatten(0, 1)

        dones = steps.dones[: steps.size]
        first = np.concatenate([self._first, dones[:-1]])
        states = self.pathwise.state(rows(steps.observations_at(slice(None))))
        actions = rows(steps.actions[: steps.size]).reshape(-1, len(self.pathwise.low))
        with th.no_grad():
            log_probs = self.pathwise.log_prob(states, actions)
        flat = {
            "states": states,
            "next_states": self.pathwise.state(rows(steps.next_observations(self._last_obs))),
            "actions": actions,
            "executed": self.pathwise.executed(actions),
            "rewards": rows(steps.rewards[: steps.size]),
            "log_probs": log_probs,
            "terminated": rows(steps.terminated()).to(states.dtype),
            "first": rows(first),
            "continues": rows(~dones),
            "held_out": rows(self.rng.random(shape) < self.holdout),
        }
        return {name: column.unflatten(0, shape) for name, column in flat.items()}

    # Saving

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        optimizers = [f"world.learned.{name}.optimizer" for name in self.world.learned]
        target = ["target_policy"] if self.has_target else []
        return [*state_dicts, "world", "transitions", *optimizers, *target], tensors

    def _excluded_save_params(self) -> list[str]:
        built = ["pathwise", "target", "_steps", "model_lr_schedule", "_first", "_parts_checked"]
        return [*super()._excluded_save_params(), *built, *HOOKS]


def _check_widths(name: str, value: Any) -> None:
    """:raises ValueError: not a sequence of whole numbers >= 1"""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError(f"{name}={value!r}: a list of widths is needed, such as [64, 64]")
    for width in value:
        check_count(name, width)
