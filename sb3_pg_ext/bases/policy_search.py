"""The policy-search family: ask for candidate parameters, let them act, tell what they got.

An algorithm writes :meth:`PolicySearchBase.ask` and :meth:`PolicySearchBase.tell`, and names the arrays that it
carries from one iteration to the next in :meth:`PolicySearchBase.initial_state`. They live in ``self.search``, in
float64, and in the model file with everything else, so that a loaded model goes on as if nothing had happened.
"""

from __future__ import annotations

import sys
import time
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from torch import nn

from sb3_pg_ext.bases.drop_in import DropIn, check_total_timesteps
from sb3_pg_ext.bases.options import check_choice, check_count, check_learning_rate, check_number, reject_unknown
from sb3_pg_ext.nets.search_policies import LinearPolicy, MlpPolicy, Moments, MultiInputPolicy
from sb3_pg_ext.rollout.batched_policies import check_searchable
from sb3_pg_ext.rollout.guards import NonFiniteError, all_finite
from sb3_pg_ext.rollout.population import Evaluation, evaluate

Array = np.ndarray[Any, Any]
Deploy = Literal["mean", "best"]
ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
#: Below every return, and finite: a model that has seen nothing holds no infinities.
NOTHING_YET = -np.finfo(np.float64).max


class SearchState(nn.Module):
    """Named float64 arrays as buffers: ``state["mean"]`` is a numpy view of one, ``state["mean"] = x`` writes into it.

    :param arrays: name -> initial value; shapes stay as they are
    """

    def __init__(self, **arrays: Any):
        super().__init__()
        for name, value in arrays.items():
            self.register_buffer(name, th.tensor(np.asarray(value, dtype=np.float64)))

    def __getitem__(self, name: str) -> Array:
        view: Array = self.get_buffer(name).numpy()
        return view

    def __setitem__(self, name: str, value: Any) -> None:
        self[name][...] = value

    def copies(self) -> dict[str, Array]:
        """A copy of every array."""
        return {name: buffer.numpy().copy() for name, buffer in self.named_buffers()}


class PolicySearchBase(DropIn, BaseAlgorithm):
    """Base of the searches in parameter space: :meth:`ask` and :meth:`tell` are what one of them has to write.

    :param policy: LinearPolicy, MlpPolicy, MultiInputPolicy (Dict observations) or a deterministic policy class, such
        as those of sb3-contrib's ARS
    :param env: environment id, gymnasium env, SB3 ``VecEnv`` or gymnasium ``VectorEnv``; each of its slots plays one
        candidate at a time
    :param learning_rate: step size, or a schedule of the remaining progress (1 to 0)
    :param population_size: n, candidates per iteration; None where the algorithm takes one by the number of parameters
    :param n_eval_episodes: E, episodes of each candidate
    :param common_seeds: common random numbers: the e-th episode of every candidate of an iteration begins with the same
        seed. :mod:`sb3_pg_ext.rollout.common_seeds` says which environments can do that
    :param normalize_observations: subtract the running mean of the observations and divide by their standard
        deviation; both are part of the policy, and change between iterations only
    :param alive_bonus_offset: added to the reward of every step where candidates are compared: -1 takes away a bonus
        of 1
    :param zero_policy: start at parameters of 0 instead of the policy's own random ones
    :param deploy: the policy that ``predict`` and ``policy.save`` use: ``"mean"``, the middle of the search
        distribution, or ``"best"``, the best candidate ever. The best return of many noisy ones is one with luck in it,
        so it promises too much; where neither starts nor dynamics are random it is exact
    :param stats_window_size: episodes over which the logged returns are averaged
    :param tensorboard_log: folder for tensorboard; None writes nothing
    :param policy_kwargs: keyword arguments of the policy: ``with_bias``, ``net_arch``, ``activation_fn``, ...
    :param verbose: 0 nothing, 1 tables, 2 debug messages
    :param seed: of python, numpy, torch, the environment and the candidates
    :param device: "cpu", "cuda", "auto", ...; the search itself runs on the CPU
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "LinearPolicy": LinearPolicy,
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy_bases: ClassVar[tuple[type[BasePolicy], ...]] = (BasePolicy,)
    flat_actions: ClassVar[bool] = False
    population_size: Any
    search: SearchState
    #: What the candidates of this iteration have got, while :meth:`tell` runs.
    evaluation: Evaluation

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule,
        *,
        population_size: int | None,
        n_eval_episodes: int = 1,
        common_seeds: bool = False,
        normalize_observations: bool = False,
        alive_bonus_offset: float = 0.0,
        zero_policy: bool = True,
        deploy: Deploy = "mean",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
        **unknown: Any,
    ):
        reject_unknown(type(self), unknown)
        check_learning_rate(learning_rate)
        check_count("population_size", population_size, optional=True)
        check_count("n_eval_episodes", n_eval_episodes)
        check_number("alive_bonus_offset", alive_bonus_offset, -1e30, 1e30)
        check_choice("deploy", deploy, Deploy)
        check_count("stats_window_size", stats_window_size)
        super().__init__(
            policy,
            env,
            learning_rate if callable(learning_rate) else float(learning_rate),
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=ACTION_SPACES,
        )
        self.population_size = population_size
        self.n_eval_episodes = n_eval_episodes
        self.common_seeds = common_seeds
        self.normalize_observations = normalize_observations
        self.alive_bonus_offset = alive_bonus_offset
        self.zero_policy = zero_policy
        self.deploy = deploy
        if _init_setup_model:
            self._setup_model()

    # --- what an algorithm writes

    def initial_state(self, theta: Array) -> dict[str, Any]:
        """Arrays that the algorithm carries along beside ``mean``, name -> initial value.

        :param theta: where the search starts, (P,)
        """
        return {}

    def ask(self) -> Array:
        """The candidates of the next iteration, (n, P), drawn with ``self.rng`` only."""
        raise NotImplementedError

    def tell(self, candidates: Array, returns: Array) -> None:
        """Change ``self.search`` by what the candidates have got. It happens as a whole or, if this raises, not at all.

        :param candidates: (n, P), as :meth:`ask` gave them
        :param returns: the mean return of each, to be maximised, (n,)
        """
        raise NotImplementedError

    # --- what all have

    @property
    def step_size(self) -> float:
        """``learning_rate`` now.

        :raises ValueError: the schedule gives no finite number >= 0
        """
        return self._scheduled("learning_rate", self.lr_schedule)

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._restore_rng()
        check_searchable(self.policy_class)
        normalized = {"normalize_observations": True} if self.normalize_observations else {}
        policy: Any = self.policy_class(self.observation_space, self.action_space, **self.policy_kwargs, **normalized)
        self.policy = policy.to(self.device)
        if next(policy.parameters(), None) is None:
            raise TypeError(f"policy={self.policy_class.__name__}: this Policy has no parameters to search for")
        theta = nn.utils.parameters_to_vector(self.policy.parameters()).detach().cpu().double().numpy()
        if self.zero_policy:
            theta = np.zeros_like(theta)
            self.policy.load_from_vector(theta)
        self.search = SearchState(mean=theta, best=theta, best_return=NOTHING_YET, **self.initial_state(theta))
        if self.normalize_observations:
            for name in ("observations", "observations_of_best"):
                self.search.add_module(name, Moments(len(policy.moments.mean)))

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least ``total_timesteps`` env steps; the last iteration is completed.

        :param total_timesteps: env steps over all env slots, a lower bound
        :param callback: called after every env step
        :param log_interval: iterations between two logs; None never logs by itself
        :param tb_log_name: name of the tensorboard run, the class name by default
        :param reset_num_timesteps: False continues the count, and the learning-rate schedule, of an earlier call
        :param progress_bar: show one
        """
        check_total_timesteps(total_timesteps)
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps and self._iterate(callback):
            if log_interval is not None and self._n_updates % log_interval == 0:
                self.dump_logs()
        callback.on_training_end()
        return self

    def _iterate(self, callback: BaseCallback) -> bool:
        """One iteration; False if the callback stopped it, and then nothing is learned."""
        assert self.env is not None
        candidates = self.ask()
        seeds = self.rng.integers(2**31, size=self.n_eval_episodes) if self.common_seeds else None
        evaluation = evaluate(self, self.env, callback, candidates, self.n_eval_episodes, seeds)
        if evaluation is None:
            return False
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        returns = (evaluation.returns + self.alive_bonus_offset * evaluation.lengths).mean(1)
        self.evaluation = evaluation
        self._tell_or_undo(candidates, returns)
        del self.evaluation
        self._n_updates += 1
        self._keep_best(candidates, returns)
        if evaluation.seen is not None:
            self._observations("observations").add(*evaluation.seen)
        self.deploy_policy(self.deploy)
        self._record(evaluation, candidates, returns)
        return True

    def _tell_or_undo(self, candidates: Array, returns: Array) -> None:
        before = self.search.copies()
        try:
            self.record(learning_rate=self.step_size)
            self.tell(candidates, returns)
            for name, array in self.search.copies().items():
                if name != "best_return" and not all_finite(array):
                    raise NonFiniteError(
                        f"{name} of the search is not finite (in float32) after update {self._n_updates + 1}, at step "
                        f"{self.num_timesteps}. It is what it was before this update. Usual causes: learning_rate too "
                        "large, or rewards beyond all bounds."
                    )
        except Exception:
            for name, array in before.items():
                self.search.get_buffer(name).numpy()[...] = array
            raise

    def _keep_best(self, candidates: Array, returns: Array) -> None:
        first = int(returns.argmax())
        if returns[first] > self.search["best_return"]:
            self.search["best"], self.search["best_return"] = candidates[first], returns[first]
            if self.normalize_observations:  # those that it was evaluated with
                now = self._observations("observations").state_dict()
                self._observations("observations_of_best").load_state_dict(now)

    def deploy_policy(self, which: Deploy) -> None:
        """Let ``predict`` use the mean of the search distribution or the best candidate so far, as ``deploy``.

        :param which: ``"mean"`` or ``"best"``
        """
        check_choice("which", which, Deploy)
        self.deploy = which
        self.policy.load_from_vector(self.search[which])
        if self.normalize_observations:
            moments = self._observations("observations" if which == "mean" else "observations_of_best")
            self.policy.get_submodule("moments").load_state_dict(moments.state_dict())

    def _observations(self, name: str) -> Moments:
        moments = self.search.get_submodule(name)
        assert isinstance(moments, Moments)
        return moments

    def record(self, **values: float) -> None:
        """Log ``train/<name>``."""
        for name, value in values.items():
            self.logger.record(f"train/{name}", float(value))

    def _record(self, evaluation: Evaluation, candidates: Array, returns: Array) -> None:
        self.record(
            return_mean=returns.mean(),
            return_max=returns.max(),
            return_std=returns.std(),
            best_return=self.search["best_return"].item(),
            spread=candidates.std(0).mean(),
        )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("rollout/used_share", float(evaluation.lengths.sum() / evaluation.collected))

    def dump_logs(self) -> None:
        """Write the log."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        if self.ep_info_buffer:
            for key, name in (("r", "ep_rew_mean"), ("l", "ep_len_mean")):
                self.logger.record(f"rollout/{name}", safe_mean([info[key] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/iterations", self._n_updates, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "search"], []
