"""The off-policy family: collect a little, store it in a replay buffer, learn from minibatches of what is stored.

As in Stable-Baselines3, ``train_freq`` steps or episodes are followed by ``gradient_steps`` updates.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import Tensor, nn

from sb3_pg_ext.bases.drop_in import DropIn, check_total_timesteps
from sb3_pg_ext.bases.options import check_count, check_learning_rate, check_number, reject_unknown
from sb3_pg_ext.bases.quick_adam import Stepper
from sb3_pg_ext.bases.replay_file import check_same_spaces, load_replay_buffer, save_replay_buffer
from sb3_pg_ext.bases.safe_names import is_importable
from sb3_pg_ext.bases.value_regression import fuse_adam
from sb3_pg_ext.nets.follower import Follower
from sb3_pg_ext.nets.gradient import Gradient, gradient
from sb3_pg_ext.rollout import guards
from sb3_pg_ext.rollout.direct_step import stepper
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.replay import Minibatch, draw

Array = np.ndarray[Any, Any]
ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
#: Updates over which losses are averaged in the log, at most.
LOGGED_UPDATES = 1000


class OffPolicyBase(DropIn, OffPolicyAlgorithm):
    """Base of the replay-based algorithms: :meth:`update` is all that one of them has to write.

    :param policy: MlpPolicy, CnnPolicy, MultiInputPolicy or a policy class
    :param env: environment id, gymnasium env, SB3 ``VecEnv`` or gymnasium ``VectorEnv``
    :param learning_rate: step size, or a schedule of the remaining progress (1 to 0)
    :param buffer_size: transitions kept, over all envs
    :param learning_starts: env steps with random actions before learning starts
    :param batch_size: transitions in a minibatch
    :param tau: share by which target networks move towards the learned ones after each update; 1 copies
    :param gamma: discount per step
    :param train_freq: env steps (each of all envs) between two rounds of updates, or ``(n, "step")`` or
        ``(n, "episode")``; the latter with one env only
    :param gradient_steps: updates in a round; -1 as many as transitions were collected
    :param action_noise: added to Box actions while collecting
    :param replay_buffer_class: a subclass of SB3's ``ReplayBuffer``; None chooses
    :param replay_buffer_kwargs: its further keyword arguments
    :param optimize_memory_usage: keep each observation once; needs
        ``replay_buffer_kwargs=dict(handle_timeout_termination=False)``
    :param n_steps: rewards in an n-step return
    :param max_grad_norm: each loss's gradient is clipped to this norm; ``float("inf")`` switches it off
    :param stats_window_size: episodes over which the logged returns are averaged
    :param tensorboard_log: folder for tensorboard; None writes nothing
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 nothing, 1 tables, 2 debug messages
    :param seed: of python, numpy, torch, the environment, the exploration noise and the minibatches
    :param device: "auto", "cpu", "cuda", ...
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    #: Which action spaces the algorithm has an answer for.
    supported_action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = ACTION_SPACES
    replay_buffer: ReplayBuffer
    policy: Any

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule,
        *,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        max_grad_norm: float = math.inf,
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
        for name, count, low in (
            ("buffer_size", buffer_size, 1),
            ("learning_starts", learning_starts, 0),
            ("batch_size", batch_size, 1),
            ("gradient_steps", gradient_steps, -1),
            ("n_steps", n_steps, 1),
            ("stats_window_size", stats_window_size, 1),
        ):
            check_count(name, count, low)
        check_number("tau", tau, 0, 1)
        check_number("gamma", gamma, 0, 1)
        check_number("max_grad_norm", max_grad_norm, 0, np.inf, above=True)
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate if callable(learning_rate) else float(learning_rate),
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=self.supported_action_spaces,
        )
        self.max_grad_norm = max_grad_norm
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.n_steps > 1 and self.replay_buffer_class is NStepReplayBuffer:
            self.replay_buffer_class = None  # what a saved model has chosen by itself is not the user's choice
        if self.n_steps > 1 and isinstance(self.observation_space, spaces.Dict):
            raise ValueError(f"n_steps={self.n_steps}: with Dict observations there are one-step returns only")
        super()._setup_model()
        self._check_train_freq()
        self._restore_rng()
        self._create_aliases()
        for optimizer in self._optimizers().values():
            fuse_adam(optimizer)
        self._steppers = {name: Stepper(optimizer) for name, optimizer in self._optimizers().items()}
        self._followers = [Follower(online, target) for online, target in self._targets()]
        self._losses: deque[Mapping[str, Tensor | float]] = deque(maxlen=LOGGED_UPDATES)

    def _check_train_freq(self) -> None:
        frequency, unit = cast(TrainFreq, self.train_freq)
        if frequency < 1 or (unit is TrainFrequencyUnit.EPISODE and self.n_envs > 1):
            raise ValueError(
                f"train_freq=({frequency}, {unit.value!r}) with {self.n_envs} environments: "
                "a number >= 1 is needed, and steps unless there is one environment"
            )

    # --- what an algorithm writes

    def _create_aliases(self) -> None:
        """Set ``self.actor``, ``self.critic``, ... to the policy's parts; they go in :meth:`_excluded_save_params`."""

    def _optimizers(self) -> dict[str, th.optim.Optimizer]:
        """Name of an attribute with an ``optimizer`` -> this optimizer. :meth:`descend` takes losses by these names."""
        return {"policy": self.policy.optimizer}

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """(learned net, target net) of each target network."""
        return []

    def update(self, batch: Minibatch) -> Mapping[str, Tensor | float]:
        """The algorithm: one step of all networks.

        :return: what to log; means over the last updates stand under ``train/<name>``
        """
        raise NotImplementedError

    def minibatches(self, gradient_steps: int, batch_size: int) -> Iterator[Minibatch]:
        """What the updates of a round learn from."""
        for _ in range(gradient_steps):
            yield draw(self.replay_buffer, batch_size, self.gamma, self.rng, self._vec_normalize_env)

    def explore(self, obs: Any) -> Array:
        """Actions to collect with, (N, ...), as the buffer keeps them: Box ones in [-1, 1].

        :param obs: (N, ...) or a dict of such
        """
        with th.no_grad():
            tensors, _ = self.policy.obs_to_tensor(obs)
            actions = self.policy._predict(tensors, deterministic=False)
        array: Array = actions.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        return array

    # --- collecting

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Take ``train_freq`` steps or episodes and store them.

        What happened in a step is stored even if the callback stops there: nothing that the env has done is lost.

        :raises NonFiniteError: the env or the policy returned NaN or infinity
        """
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        env_step = stepper(env)
        n_steps = n_episodes = 0
        while should_collect_more_steps(train_freq, n_steps, n_episodes):
            actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
            new_obs, rewards, dones, infos = guards.step(env_step, env, actions, self.num_timesteps)
            self.num_timesteps += env.num_envs
            n_steps += 1
            self._check_step(new_obs, rewards, dones, infos)
            callback.update_locals(locals())
            going_on = callback.on_step()
            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
            if not going_on:
                return RolloutReturn(n_steps * env.num_envs, n_episodes, continue_training=False)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            n_episodes += self._end_episodes(dones, action_noise, log_interval)
        callback.on_rollout_end()
        return RolloutReturn(n_steps * env.num_envs, n_episodes, continue_training=True)

    def _check_step(self, new_obs: Any, rewards: Array, dones: Array, infos: list[dict[str, Any]]) -> None:
        where = f"after step {self.num_timesteps}"
        guards.check_observations(new_obs, where)
        guards.check_rewards(rewards, where)
        for slot in np.flatnonzero(dones).tolist():
            last = infos[slot].get("terminal_observation")
            if last is not None:
                guards.check_last_observation(last, slot, where)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Array, Array]:
        """Actions for the env, and as the buffer keeps them, each (N, ...): random ones before ``learning_starts``."""
        box = isinstance(self.action_space, spaces.Box)
        if self.num_timesteps < learning_starts:
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            stored = self._from_env(actions) if box else actions
        else:
            stored = self.explore(self._last_obs)
            if not guards.all_finite(stored):
                raise NonFiniteError(
                    "The policy gives NaN or infinity for finite observations: its parameters have run away. "
                    "Usual causes: learning_rate too large, or observations or rewards of a large scale."
                )
        if not box:
            return stored, stored
        if action_noise is not None:
            stored = np.clip(stored + action_noise(), -1, 1)
        return self._to_env(stored), stored

    def _to_env(self, scaled: Array) -> Array:
        """Actions in [-1, 1] in the env's units; never beyond its bounds, not even by rounding."""
        space: Any = self.action_space
        actions = self.policy.unscale_action(scaled)
        return np.minimum(np.maximum(actions, space.low), space.high).astype(space.dtype, copy=False)

    def _from_env(self, actions: Array) -> Array:
        """Actions in the env's units in [-1, 1]; where the space has but one number, -1 stands for it."""
        space: Any = self.action_space
        span = np.where(space.high > space.low, space.high - space.low, 1)
        return (2 * (actions - space.low) / span - 1).astype(space.dtype, copy=False)

    def _end_episodes(self, dones: Array, action_noise: ActionNoise | None, log_interval: int | None) -> int:
        """Book the episodes that have just ended; their number."""
        over: list[int] = np.flatnonzero(dones).tolist()
        for slot in over:
            self._episode_num += 1
            if action_noise is not None:
                action_noise.reset(**({"indices": [slot]} if self.n_envs > 1 else {}))
            if log_interval is not None and self._episode_num % log_interval == 0:
                self.dump_logs()
        return len(over)

    # --- learning

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """A round of updates."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(list(self._optimizers().values()))
        for batch in self.minibatches(gradient_steps, batch_size):
            self._losses.append(self.update(batch))
            self._n_updates += 1
            self.follow_targets()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def descend(self, **losses: Tensor) -> dict[str, float]:
        """:meth:`step` down the gradients of losses; each reaches the parameters of its own optimizer and no others.

        :param losses: name in :meth:`_optimizers` -> its loss
        """
        optimizers = self._optimizers()
        keep = len(losses) > 1
        return self.step(**{name: gradient(loss, learned(optimizers[name]), keep) for name, loss in losses.items()})

    def step(self, **gradients: Gradient) -> dict[str, float]:
        """One step of each named optimizer down its own gradient; none is taken if any gradient is not finite.

        Each gradient is clipped to ``max_grad_norm``.

        :param gradients: name in :meth:`_optimizers` -> the gradient for its parameters
        :return: ``<name>_grad_norm``, to be logged
        :raises NonFiniteError: naming the loss
        """
        optimizers = self._optimizers()
        for name, (loss, _, norm) in gradients.items():
            self._check_gradient(name, loss, norm)
        for name, (_, parts, norm) in gradients.items():
            if norm > self.max_grad_norm:
                th._foreach_mul_([part for part in parts if part is not None], self.max_grad_norm / norm)
            for parameter, part in zip(learned(optimizers[name]), parts, strict=True):
                parameter.grad = part
            self._steppers[name]()
        return {f"{name}_grad_norm": norm for name, (_, _, norm) in gradients.items()}

    def follow_targets(self) -> None:
        """Move the target networks by tau towards the learned ones."""
        for follower in self._followers:
            follower(self.tau)

    def dump_logs(self) -> None:
        """Write the log, with the means of what the updates since the last time have returned."""
        names = dict.fromkeys(name for losses in self._losses for name in losses)
        for name in names:
            values = [float(losses[name]) for losses in self._losses if name in losses]
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self._losses.clear()
        super().dump_logs()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least ``total_timesteps`` env steps.

        :param total_timesteps: env steps over all env slots, a lower bound
        :param callback: called after every env step
        :param log_interval: episodes between two logs; None never logs by itself
        :param tb_log_name: name of the tensorboard run, the class name by default
        :param reset_num_timesteps: False continues the count, and the learning-rate schedule, of an earlier call
        :param progress_bar: show one
        """
        check_total_timesteps(total_timesteps)
        return super().learn(
            total_timesteps,
            callback,
            log_interval,  # type: ignore[arg-type]
            tb_log_name or type(self).__name__,
            reset_num_timesteps,
            progress_bar,
        )

    # --- saving

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer; an old file of this name stays whole until the new one is complete.

        :param path: ``.pkl`` is added if it has no suffix; or a file object open for writing
        """
        save_replay_buffer(self.replay_buffer, path)

    def load_replay_buffer(
        self, path: str | Path | Any, truncate_last_traj: bool = True, *, trusted: bool = False, allow: Any = ()
    ) -> None:
        """Load a replay buffer without executing anything that the file holds.

        :param path: the file, with or without ``.pkl``, or a file object
        :param truncate_last_traj: of a ``HerReplayBuffer``: what follows is another episode
        :param trusted: unpickle everything, as Stable-Baselines3 does; only for files that you trust. The file of a
            ``HerReplayBuffer`` needs it: it keeps the infos of all steps, which may hold anything
        :param allow: further classes that the file may hold, beside ``replay_buffer_class``
        :raises UnsafeModelError: the file holds something that is not on the list of harmless names
        :raises ValueError: the buffer is one of other spaces; the model keeps the one that it has
        """
        before = self.replay_buffer
        if trusted:
            super().load_replay_buffer(path, truncate_last_traj)
        else:
            self._load_replay_buffer(path, truncate_last_traj, allow)
        loaded, self.replay_buffer = self.replay_buffer, before
        check_same_spaces(loaded, self.observation_space, self.action_space)
        self.replay_buffer = loaded

    def _load_replay_buffer(self, path: Any, truncate_last_traj: bool, allow: Any) -> None:
        known = [ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer, self.replay_buffer_class]
        named = [cls for cls in known if cls is not None and is_importable(cls)]
        self.replay_buffer = load_replay_buffer(path, [*named, *allow])
        self.replay_buffer.device = self.device
        if isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.set_env(self.env)  # type: ignore[arg-type]
            if truncate_last_traj:
                self.replay_buffer.truncate_last_trajectory()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{name}.optimizer" for name in self._optimizers())], []

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_followers", "_steppers", "_losses"]


def learned(optimizer: th.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimizer that are not frozen."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
