"""The trials of a study, sorted by what has become of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from optuna.trial import FrozenTrial, TrialState

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.tuning.axes import Axis, axes_of
from sb3_pg_ext.experiments.tuning.fate import Fate, fate_of
from sb3_pg_ext.experiments.tuning.ledger import counts, name_of, origin_of
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.tuning.sensitivity import Sensitivity, sensitivity
from sb3_pg_ext.experiments.tuning.starting_point import parameters_of
from sb3_pg_ext.experiments.values import merge


@dataclass(frozen=True)
class Overview:
    """Trials and what they say of the settings.

    :param plan: of the study
    :param trials: all of the study, by number
    """

    plan: Plan
    trials: Sequence[FrozenTrial]

    @cached_property
    def axes(self) -> list[Axis]:
        return axes_of(self.plan.dimensions)

    @cached_property
    def completed(self) -> list[FrozenTrial]:
        """With all their runs."""
        return self._valued("completed")

    @cached_property
    def cut(self) -> list[FrozenTrial]:
        """With a value of their first runs: by then they were worse than the best, seed by seed."""
        return self._valued("cut")

    def _valued(self, fate: Fate) -> list[FrozenTrial]:
        return [trial for trial in self._counting(fate) if value_of(trial) is not None]

    @cached_property
    def pruned(self) -> list[FrozenTrial]:
        return self._counting("pruned")

    @cached_property
    def failed(self) -> list[FrozenTrial]:
        return self._counting("failed")

    @cached_property
    def running(self) -> list[FrozenTrial]:
        return self._counting("running")

    @cached_property
    def waiting(self) -> list[FrozenTrial]:
        return self._counting("waiting")

    @cached_property
    def not_counted(self) -> list[FrozenTrial]:
        """Lost with their processes and done again, or begun although they were not needed."""
        return [trial for trial in self.trials if not counts(trial)]

    @cached_property
    def shown(self) -> list[FrozenTrial]:
        """All that count and have been begun, by number."""
        begun = [*self.completed, *self.cut, *self.pruned, *self.failed, *self.running]
        return sorted(begun, key=lambda trial: trial.number)

    def _counting(self, fate: Fate) -> list[FrozenTrial]:
        return [trial for trial in self.trials if fate_of(trial) == fate and counts(trial)]

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The completed trials, the best first."""
        return sorted(self.completed, key=lambda trial: (-(value_of(trial) or 0.0), trial.number))

    @property
    def best(self) -> FrozenTrial | None:
        return self.ranked[0] if self.ranked else None

    @cached_property
    def first(self) -> FrozenTrial | None:
        """The trial with which the search has begun; the one that counts, if it was lost and done again."""
        return next((trial for trial in self.shown if name_of(origin_of(trial, self.trials))), None)

    @cached_property
    def name_of_first(self) -> str:
        """``"defaults"``, if these are its settings; else ``"start"``."""
        defaults = merge(registry.get(self.plan.algo).defaults, self.plan.arguments)
        wanted = parameters_of(self.plan.dimensions, defaults)
        drawn = self.first.params if self.first else {}
        return "defaults" if all(drawn.get(name) == place for name, place in wanted.items()) else "start"

    @cached_property
    def sensitivities(self) -> list[Sensitivity]:
        """Of all settings, those that matter most first, from completed, cut and pruned trials.

        One that was given up stands with the value that it had by then: to leave it out would hide what is bad.
        """
        judged = [trial for trial in (*self.completed, *self.cut, *self.pruned) if value_of(trial) is not None]
        found = [self._sensitivity(axis, judged) for axis in self.axes]
        return sorted(found, key=lambda each: -1.0 if math.isnan(each.loss) else each.loss, reverse=True)

    def _sensitivity(self, axis: Axis, judged: Sequence[FrozenTrial]) -> Sensitivity:
        places = [(place, value_of(trial)) for trial in judged if (place := axis.place(trial)) is not None]
        return sensitivity(axis, [place for place, _ in places], [value or 0.0 for _, value in places])

    @cached_property
    def enough(self) -> list[Sensitivity]:
        """Of the settings with two bins of trials to compare."""
        return [each for each in self.sensitivities if len(each.bins) > 1]


def value_of(trial: FrozenTrial) -> float | None:
    """What a trial came to in the end, or has come to so far; ``None`` if that is nothing, or it has failed."""
    if trial.state is TrialState.FAIL:
        return None
    reported = trial.intermediate_values
    value = trial.value if trial.values else reported[max(reported)] if reported else None
    return value if value is not None and math.isfinite(value) else None
