"""Tuning of hyperparameters with Optuna: several seeds a trial, worker processes, and nothing lost to a kill.

>>> from sb3_pg_ext.experiments.tuning import Tuning, plan_tuning
>>> plan = plan_tuning("reinforce", "CartPole-v1", total_steps=20_000, seeds_per_trial=3)
>>> winner = Tuning(plan, "results/tuning").run(n_trials=100, jobs=4)  # doctest: +SKIP
>>> winner.settings  # doctest: +SKIP
{'learning_rate': 0.0031, 'gamma': 0.992, ...}
"""

from sb3_pg_ext.experiments.tuning.plan import Plan, plan_tuning
from sb3_pg_ext.experiments.tuning.tuning import Tuning, Winner

__all__ = ["Plan", "Tuning", "Winner", "plan_tuning"]
