"""Algorithms that are broken on purpose, each under the tests of the contract that have to catch it.

``test_testing.py`` runs this file and expects each of these tests to fail, and all of them to pass on a sound class.
"""

import json
import random
import zipfile
from collections import deque
from dataclasses import replace
from unittest import mock

import numpy as np
import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pg_ext.algorithms.reinforce import REINFORCE, SPEC
from sb3_pg_ext.rollout import guards
from sb3_pg_ext.testing import AlgorithmContract


class Deaf(BaseCallback):
    """Passes everything on but the answer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def update_locals(self, locals_):
        self.inner.update_locals(locals_)

    def on_rollout_start(self):
        self.inner.on_rollout_start()

    def on_rollout_end(self):
        self.inner.on_rollout_end()

    def on_step(self):
        self.inner.on_step()
        return True


class Once(Deaf):
    """Passes on the first step of a rollout only."""

    def on_step(self):
        first, self.done = not getattr(self, "done", False), True
        return self.inner.on_step() if first else True


class IgnoresCallbacks(REINFORCE):
    def collect_rollouts(self, env, callback, *args, **kwargs):
        return super().collect_rollouts(env, Deaf(callback), *args, **kwargs)


class CallsBackOnceARollout(REINFORCE):
    def collect_rollouts(self, env, callback, *args, **kwargs):
        return super().collect_rollouts(env, Once(callback), *args, **kwargs)


class CountsWrong(REINFORCE):
    def collect_rollouts(self, *args, **kwargs):
        going_on = super().collect_rollouts(*args, **kwargs)
        self.num_timesteps += 1
        return going_on


class LearnsAfterAStop(REINFORCE):
    def collect_rollouts(self, *args, **kwargs):
        going_on = super().collect_rollouts(*args, **kwargs)
        if not going_on:
            with th.no_grad():
                next(self.policy.parameters()).add_(1)
        return going_on


class NeverEndsRollouts(REINFORCE):
    def collect_rollouts(self, env, callback, *args, **kwargs):
        callback.on_rollout_start()
        return super().collect_rollouts(env, callback, *args, **kwargs)


class LosesItsNoise(REINFORCE):
    def _restore_rng(self):
        self._rng_state = None


class LosesItsOptimizer(REINFORCE):
    def _get_torch_save_params(self):
        return ["policy"], []


class LosesAModule(REINFORCE):
    def _setup_model(self):
        super()._setup_model()
        self.extra = th.nn.Linear(2, 2)

    def _excluded_save_params(self):
        return [*super()._excluded_save_params(), "extra"]


class ForgetsCounts(REINFORCE):
    def _excluded_save_params(self):
        return [*super()._excluded_save_params(), "num_timesteps"]


class DisturbedBySaving(REINFORCE):
    def save(self, *args, **kwargs):
        self.rng.random()
        super().save(*args, **kwargs)


class KeepsTheSizeOfItsEnvironment(REINFORCE):
    def _setup_model(self):
        super()._setup_model()
        self.size = getattr(self, "size", self.n_envs)

    def collect_rollouts(self, *args, **kwargs):
        assert self.size == self.n_envs
        return super().collect_rollouts(*args, **kwargs)


class BeginsAgain(REINFORCE):
    def learn(self, *args, **kwargs):
        self._setup_model()
        return super().learn(*args, **kwargs)


class ResetsAgain(REINFORCE):
    def learn(self, *args, **kwargs):
        self._last_obs = None
        return super().learn(*args, **kwargs)


class LearnsNothing(REINFORCE):
    def update(self, rollout):
        pass


class LearnsTheOpposite(REINFORCE):
    def descend(self, **losses):
        super().descend(**{name: -loss for name, loss in losses.items()})


class RunsAway(REINFORCE):
    def update(self, rollout):
        super().update(rollout)
        with th.no_grad():
            next(self.policy.parameters()).fill_(float("nan"))


class HasAConstantRate(REINFORCE):
    def _update_learning_rate(self, optimizers):
        self.logger.record("train/learning_rate", self.lr_schedule(1.0))


class LogsARateItDoesNotUse(REINFORCE):
    def _update_learning_rate(self, optimizers):
        self.logger.record("train/learning_rate", self.lr_schedule(self._current_progress_remaining))


class TrainsWhileActing(REINFORCE):
    def collect_rollouts(self, env, callback, *args, **kwargs):
        self.policy.set_training_mode = lambda mode: type(self.policy).set_training_mode(self.policy, True)
        return super().collect_rollouts(env, callback, *args, **kwargs)


class NeverTrains(REINFORCE):
    def train(self):
        self.policy.set_training_mode = lambda mode: type(self.policy).set_training_mode(self.policy, False)
        super().train()


class IsUnpredictable(REINFORCE):
    def set_random_seed(self, seed=None):
        super().set_random_seed(seed)
        self.rng = np.random.default_rng()


class IsAlwaysTheSame(REINFORCE):
    def set_random_seed(self, seed=None):
        super().set_random_seed(0)


class UsesTheGlobalGenerator(REINFORCE):
    def set_random_seed(self, seed=None):
        state = random.getstate()
        super().set_random_seed(seed)
        random.setstate(state)
        self.rng = np.random.default_rng(random.randrange(2**30))


class LeavesTheBounds(REINFORCE):
    def predict(self, *args, **kwargs):
        action, state = super().predict(*args, **kwargs)
        return action * 3, state


class AnswersInABatch(REINFORCE):
    def predict(self, observation, *args, **kwargs):
        action, state = super().predict(observation, *args, **kwargs)
        return action.reshape(-1, *self.action_space.shape), state


class AnswersInDouble(REINFORCE):
    def predict(self, observation, *args, **kwargs):
        action, state = super().predict(observation, *args, **kwargs)
        return action.astype(np.float64), state


class LearnsFromAnswering(REINFORCE):
    def predict(self, *args, **kwargs):
        with th.no_grad():
            next(self.policy.parameters()).add_(1e-6)
        return super().predict(*args, **kwargs)


class NamesItsRuns(REINFORCE):
    def learn(self, *args, **kwargs):
        return super().learn(*args, **{"tb_log_name": "run", **kwargs})


class NeedsALogInterval(REINFORCE):
    def learn(self, total_timesteps, callback=None, log_interval=1, *args, **kwargs):
        return super().learn(total_timesteps, callback, log_interval or 1, *args, **kwargs)


class LosesSuccesses(REINFORCE):
    def _update_info_buffer(self, infos, dones=None):
        super()._update_info_buffer(infos)


class LogsAtTheWrongStep(REINFORCE):
    def dump_logs(self, iteration=0):
        dump = self.logger.dump
        self.logger.dump = lambda step: dump(step + 1)
        super().dump_logs(iteration)
        self.logger.dump = dump


class GrowsItsNet(REINFORCE):
    """Writes into the dict of its caller."""

    def _setup_model(self):
        self.policy_kwargs["net_arch"] = [*self.policy_kwargs.get("net_arch", []), 4]
        super()._setup_model()


class ForgetsAnArgument(REINFORCE):
    def __init__(self, *args, temperature=1.0, **kwargs):
        super().__init__(*args, **kwargs)


class BuildsTooEarly(REINFORCE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self, "policy"):
            self._setup_model()


class HasOneEnvironmentOnly(REINFORCE):
    def _setup_model(self):
        assert self.n_envs in (None, 1)
        super()._setup_model()


class SwallowsErrors(REINFORCE):
    def collect_rollouts(self, *args, **kwargs):
        try:
            return super().collect_rollouts(*args, **kwargs)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return False


class ReadsItsFilesPartly(REINFORCE):
    @classmethod
    def load(cls, *args, **kwargs):
        model = super().load(*args, **kwargs)
        with th.no_grad():
            next(model.policy.parameters()).add_(1e-7)
        return model


class HidesTheStep(REINFORCE):
    def collect_rollouts(self, env, callback, *args, **kwargs):
        callback.update_locals = lambda locals_: None
        return super().collect_rollouts(env, callback, *args, **kwargs)


class ForgetsTheEnd(REINFORCE):
    def _setup_learn(self, *args, **kwargs):
        total, callback = super()._setup_learn(*args, **kwargs)
        callback.on_training_end = lambda: None
        return total, callback


class LetsEverythingThrough(REINFORCE):
    def learn(self, *args, **kwargs):
        with mock.patch.multiple(guards, check_rewards=mock.DEFAULT, check_observations=mock.DEFAULT):
            return super().learn(*args, **kwargs)


class LearnsBeforeItLooks(REINFORCE):
    def learn(self, *args, **kwargs):
        try:
            return super().learn(*args, **kwargs)
        except ValueError:
            with th.no_grad():
                next(self.policy.parameters()).add_(1)
            raise


class SpeaksInRiddles(REINFORCE):
    def learn(self, *args, **kwargs):
        try:
            return super().learn(*args, **kwargs)
        except ValueError:
            raise ValueError("something is wrong") from None


class IsLenient(REINFORCE):
    def __init__(self, *args, gamma=0.99, **kwargs):
        super().__init__(*args, gamma=min(gamma, 1.0), **kwargs)


class TakesAnything(REINFORCE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{name: value for name, value in kwargs.items() if name in SPEC.defaults})


class IgnoresPolicyArguments(REINFORCE):
    def _setup_model(self):
        given, self.policy_kwargs = self.policy_kwargs, {}
        super()._setup_model()
        self.policy_kwargs = given


class Talks(REINFORCE):
    def train(self):
        print("training")
        super().train()


class RemembersAllEpisodes(REINFORCE):
    def _setup_learn(self, *args, **kwargs):
        prepared = super()._setup_learn(*args, **kwargs)
        self.ep_info_buffer, self.ep_success_buffer = deque(self.ep_info_buffer), deque(self.ep_success_buffer)
        return prepared


class ExaggeratesItsSpeed(REINFORCE):
    def _setup_learn(self, *args, **kwargs):
        prepared = super()._setup_learn(*args, **kwargs)
        self._num_timesteps_at_start = 0
        return prepared


class ReplacesItsLogger(REINFORCE):
    def learn(self, *args, **kwargs):
        self._custom_logger = False
        return super().learn(*args, **kwargs)


class TakesAnyEnvironment(REINFORCE):
    def set_env(self, env, force_reset=True):
        self.env, self._last_obs = self._wrap_env(env), None


class RefusesNativeEnvironments(REINFORCE):
    @staticmethod
    def _wrap_env(env, verbose=0, monitor_wrapper=True):
        assert not isinstance(env, VectorEnv)
        return REINFORCE._wrap_env(env, verbose, monitor_wrapper)


class WantsText(REINFORCE):
    def save(self, path, *args, **kwargs):
        super().save(path + "", *args, **kwargs)


class ClosesFiles(REINFORCE):
    def save(self, path, *args, **kwargs):
        super().save(path, *args, **kwargs)
        path.close()


class SavesEverything(REINFORCE):
    def save(self, path, exclude=None, include=None):
        super().save(path, None, include)


class LoadsNoReplacements(REINFORCE):
    @classmethod
    def load(cls, path, env=None, device="auto", **kwargs):
        return super().load(path, env, device)


class StartsFromTheFirstTotal(REINFORCE):
    """Takes ``total_timesteps`` for the sum over all calls."""

    def _setup_learn(self, total_timesteps, *args, **kwargs):
        _, callback = super()._setup_learn(total_timesteps, *args, **kwargs)
        return total_timesteps, callback


class LoadsAnything(REINFORCE):
    @classmethod
    def load(cls, path, env=None, device="auto", trusted=False, **kwargs):
        return BaseAlgorithm.load.__func__(cls, path, env, device, **kwargs)


class KnowsNoRelations(REINFORCE):
    @classmethod
    def load(cls, path, *args, **kwargs):
        with zipfile.ZipFile(f"{path}.zip") as archive:
            written_by = json.loads(archive.read("sb3_pg_ext.json"))["class"].rpartition(":")[2]
        if written_by != cls.__qualname__:
            raise ValueError(f"a {written_by}, not a {cls.__qualname__}")
        return super().load(path, *args, **kwargs)


class TakesEveryWordForYes(REINFORCE):
    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)


class TakesEveryPolicy(REINFORCE):
    policy_bases = (object,)

    def _get_policy_from_name(self, policy_name):
        return OnPolicyAlgorithm._get_policy_from_name(self, policy_name)


class FearsLargeObservations(REINFORCE):
    def update(self, rollout):
        if rollout.observations.abs().max() > 1e25:
            raise ValueError("learning_rate too large")
        super().update(rollout)


class TakesEverySpace(REINFORCE):
    flat_actions = False

    def __init__(self, policy, env, *args, policy_kwargs=None, **kwargs):
        extractor = {"features_extractor_class": FlattenExtractor}  # with one of one's own, nothing is asked
        super().__init__(policy, env, *args, policy_kwargs={**extractor, **(policy_kwargs or {})}, **kwargs)


CAUGHT = {
    LoadsAnything: {"test_file_of_another_class_is_refused", "test_mistyped_arguments_of_load_are_refused"},
    KnowsNoRelations: {"test_subclasses_and_their_parents_load_each_others_files"},
    TakesEveryWordForYes: {"test_what_is_neither_true_nor_false_is_refused"},
    TakesEveryPolicy: {
        "test_what_is_no_policy_of_this_family_is_refused",
        "test_error_for_a_policy_name_lists_those_that_there_are",
    },
    TakesEverySpace: {"test_odd_spaces", "test_policy_for_other_observations_is_refused"},
    FearsLargeObservations: {"test_observations_beyond_all_bounds_spoil_nothing"},
    IgnoresCallbacks: {
        "test_any_falsy_answer_stops_at_this_step",
        "test_stops_after_so_many_episodes_in_two_environments",
    },
    CallsBackOnceARollout: {"test_one_call_for_every_step", "test_progress_bar_counts_the_steps"},
    CountsWrong: {"test_learns_in_several_environments", "test_one_call_for_every_step"},
    LearnsAfterAStop: {"test_a_stop_in_the_first_rollout_learns_nothing"},
    NeverEndsRollouts: {"test_order_of_calls"},
    LosesItsNoise: {"test_training_goes_on_as_if_nothing_had_happened"},
    LosesItsOptimizer: {
        "test_every_tensor_and_optimizer_is_in_the_file",
        "test_training_goes_on_as_if_nothing_had_happened",
    },
    LosesAModule: {"test_every_tensor_and_optimizer_is_in_the_file"},
    ForgetsCounts: {"test_arguments_and_counts_are_kept", "test_environment_may_be_given_later"},
    DisturbedBySaving: {"test_saving_does_not_disturb_training"},
    KeepsTheSizeOfItsEnvironment: {"test_number_of_environments_may_change"},
    BeginsAgain: {
        "test_second_call_starts_where_the_first_ended",
        "test_count_begins_anew_by_default_but_learning_does_not",
    },
    ResetsAgain: {"test_environment_is_not_reset_between_two_calls"},
    LearnsNothing: {"test_learns_on_every_action_space", "test_training_moves_running_statistics"},
    LearnsTheOpposite: {"test_learns_what_can_be_learned"},
    RunsAway: {"test_learns_on_every_action_space", "test_rewards_may_be_of_any_scale"},
    HasAConstantRate: {"test_learning_rates_follow_their_schedules"},
    LogsARateItDoesNotUse: {"test_learning_rates_follow_their_schedules"},
    TrainsWhileActing: {"test_acting_leaves_running_statistics_alone"},
    NeverTrains: {"test_training_moves_running_statistics"},
    IsUnpredictable: {"test_same_seed_gives_the_same_result"},
    IsAlwaysTheSame: {"test_another_seed_gives_another_result"},
    UsesTheGlobalGenerator: {"test_same_seed_gives_the_same_result"},
    LeavesTheBounds: {"test_actions_lie_in_the_action_space"},
    AnswersInABatch: {"test_one_observation_gives_one_action", "test_a_batch_is_answered_one_by_one"},
    AnswersInDouble: {"test_one_observation_gives_one_action"},
    LearnsFromAnswering: {"test_predicting_changes_nothing_that_was_learned"},
    NamesItsRuns: {"test_tensorboard_runs_are_named_after_the_class"},
    NeedsALogInterval: {"test_log_interval_may_be_none"},
    LosesSuccesses: {"test_statistics_of_episodes_are_right", "test_required_keys_are_logged"},
    LogsAtTheWrongStep: {"test_each_row_stands_at_its_step"},
    GrowsItsNet: {"test_policy_kwargs_serve_twice"},
    ForgetsAnArgument: {"test_every_argument_is_stored_under_its_name"},
    BuildsTooEarly: {"test_nothing_is_built_without_init_setup_model"},
    HasOneEnvironmentOnly: {"test_several_environments", "test_native_environments"},
    SwallowsErrors: {"test_fault_in_a_step_is_named", "test_an_error_of_a_callback_comes_through"},
    HidesTheStep: {"test_locals_hold_the_step"},
    ForgetsTheEnd: {"test_order_of_calls", "test_order_of_calls_after_a_stop", "test_progress_bar_counts_the_steps"},
    LetsEverythingThrough: {
        "test_fault_in_a_step_is_named",
        "test_fault_in_a_reset_is_named",
        "test_one_faulty_environment_of_several_is_named",
    },
    LearnsBeforeItLooks: {"test_nothing_is_learned_from_a_faulty_rollout"},
    SpeaksInRiddles: {"test_fault_in_a_step_is_named", "test_senseless_total_is_refused_by_name"},
    IsLenient: {"test_senseless_argument_is_refused_by_name"},
    TakesAnything: {"test_unknown_argument_is_refused_by_name", "test_the_nearest_argument_is_suggested"},
    IgnoresPolicyArguments: {"test_policy_kwargs_reach_the_policy", "test_optimizer_may_be_chosen"},
    Talks: {"test_nothing_is_printed_by_default"},
    RemembersAllEpisodes: {"test_statistics_are_over_a_window"},
    ExaggeratesItsSpeed: {"test_speed_counts_the_steps_of_this_call_only"},
    ReplacesItsLogger: {"test_logger_survives_a_second_call"},
    TakesAnyEnvironment: {"test_environment_with_other_spaces_is_refused"},
    RefusesNativeEnvironments: {"test_native_environments", "test_native_environments_give_the_same_result"},
    WantsText: {"test_file_may_be_named_with_and_without_suffix", "test_file_may_be_a_file_object"},
    ClosesFiles: {"test_file_may_be_a_file_object"},
    SavesEverything: {"test_attributes_may_be_excluded_and_included"},
    LoadsNoReplacements: {"test_arguments_may_be_replaced", "test_other_policy_kwargs_are_refused"},
    StartsFromTheFirstTotal: {"test_second_call_starts_where_the_first_ended"},
    ReadsItsFilesPartly: {"test_everything_learned_is_kept", "test_file_may_be_a_file_object"},
}


ALL_TESTS = {name for name in dir(AlgorithmContract) if name.startswith("test_")}


def contract(cls, tests):
    assert tests <= ALL_TESTS, tests - ALL_TESTS
    attributes = {"spec": replace(SPEC, cls=cls), "solves": 6_000, **dict.fromkeys(ALL_TESTS - tests)}
    return type(f"Test{cls.__name__}", (AlgorithmContract,), attributes)


for broken, tests in {REINFORCE: set.union(*CAUGHT.values()), **CAUGHT}.items():
    globals()[f"Test{broken.__name__}"] = contract(broken, tests)
