"""Callbacks that copy what a model logs into an experiment tracker.

>>> model.learn(100_000, callback=WandbTracker(project="cartpole"))  # doctest: +SKIP

Each takes ``name``, ``group``, ``tags`` and ``hyperparameters`` as
:class:`~sb3_pg_ext.experiments.trackers.tracker.Tracker` does.
"""

from sb3_pg_ext.experiments.trackers.mlflow import MlflowTracker
from sb3_pg_ext.experiments.trackers.tensorboard import TensorboardTracker
from sb3_pg_ext.experiments.trackers.tracker import Tracker
from sb3_pg_ext.experiments.trackers.wandb import WandbTracker

__all__ = ["MlflowTracker", "TensorboardTracker", "Tracker", "WandbTracker"]
