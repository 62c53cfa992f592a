"""The figures of a tuning: which there are, and how they are read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import optuna
from optuna.study import Study

from sb3_pg_ext.experiments.chart import ALONE, AMONG_OTHERS, Chart
from sb3_pg_ext.experiments.figure import Panel
from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning import drawing
from sb3_pg_ext.experiments.tuning.axes import Axis
from sb3_pg_ext.experiments.tuning.overview import Overview, value_of
from sb3_pg_ext.experiments.tuning.sensitivity import Sensitivity

FEWEST_FOR_IMPORTANCE = 10  # completed trials: the best tenth is compared with all
_ENOUGH_FOR_IMPORTANCE = 50  # so that the best tenth is five


def charts(overview: Overview, importances: Mapping[str, float]) -> list[Chart]:
    """All that the trials are good for."""
    if not overview.shown:
        return []
    found = [_history(overview), _intermediate(overview), _slices(overview)]
    found += [_importance(importances, len(overview.completed) + len(overview.cut))] if importances else []
    return [*found, _sensitivities(overview.enough)] if overview.enough else found


def importances(study: Study, overview: Overview) -> tuple[dict[str, float], str]:
    """Setting -> its share of the importance by PED-ANOVA (Watanabe et al. 2023, PED-ANOVA: Efficiently Quantifying
    Hyperparameter Importance in Arbitrary Subspaces, arXiv:2304.10255), or why there is none.

    Only the trials count that are complete to Optuna: those that were pruned are left out, those that were cut are not.
    """
    known = [*overview.completed, *overview.cut]
    values = {value_of(trial) for trial in known}
    if len(known) < FEWEST_FOR_IMPORTANCE:
        return {}, f"Importances need at least {FEWEST_FOR_IMPORTANCE} completed trials; there are {len(known)}."
    if len(values) < 2:
        return {}, "All completed trials have the same value, so that no setting is more important than another."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            found = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError) as error:
            return {}, f"The importances cannot be told: {error}"
    names = {axis.parameter: axis.name for axis in overview.axes}
    return {names.get(parameter, parameter): share for parameter, share in found.items()}, ""


def _history(overview: Overview) -> Chart:
    best, first = overview.best, overview.first
    known = [] if best is None else [f"the best is {number(value_of(best) or 0.0)} in trial {best.number}"]
    if first is not None and value_of(first) is not None:
        known.append(f"the {overview.name_of_first} came to {number(value_of(first) or 0.0)}")
    alt = f"Values of {len(overview.shown)} trials by their number; {', '.join(known) or 'none has been completed'}."
    return Chart(
        "history",
        "History",
        "Value of every trial. One that was pruned, or cut after some of its seeds, stands at the value with which it "
        "was given up; one that failed, or has no value yet, at the lower edge.",
        [Panel("Value of every trial", alt, partial(drawing.draw_history, overview=overview))],
        ALONE,
    )


def _intermediate(overview: Overview) -> Chart:
    alt = f"Learning curves of {len(overview.shown)} trials over the environment steps of all their runs."
    return Chart(
        "intermediate",
        "Intermediate values",
        f"The {overview.plan.aggregate} of the ended runs and the one under way. A line begins anew with every seed; "
        "dashed ones were pruned, or cut after a seed; dotted ones failed or still run.",
        [Panel("Value while the trials ran", alt, partial(drawing.draw_intermediate, overview=overview))],
        ALONE,
    )


def _slices(overview: Overview) -> Chart:
    values = [value for trial in overview.shown if (value := value_of(trial)) is not None]
    limits = (min(values), max(values)) if values else (0.0, 1.0)

    def panel(axis: Axis) -> Panel:
        n = sum(axis.place(trial) is not None for trial in overview.shown)
        alt = f"Value of {n} trials against {axis.name}, from {axis.words}."
        return Panel(axis.name, alt, partial(drawing.draw_slice, overview=overview, axis=axis, limits=limits))

    return Chart(
        "slice",
        "Slices",
        "Value against each searched setting. Filled: completed; hollow circle: cut by the pruner after some of its "
        "seeds; hollow triangle: pruned; cross: failed; star: the best; "
        f"diamond: the {overview.name_of_first}.",
        [panel(axis) for axis in overview.axes],
        AMONG_OTHERS,
    )


def _importance(shares: Mapping[str, float], n_completed: int) -> Chart:
    listed = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
    return Chart(
        "importance",
        "Importance",
        f"How much more the best tenth of the {n_completed} completed trials agrees on a setting than all of them do "
        f"(PED-ANOVA).{'' if n_completed >= _ENOUGH_FOR_IMPORTANCE else ' So few trials give a rough hint only.'}",
        [Panel("Importance of the settings", f"{listed}.", partial(drawing.draw_importance, importances=shares))],
        ALONE,
    )


def _sensitivities(found: Sequence[Sensitivity]) -> Chart:
    quartiles = [height for one in found for each in one.bins for height in each.quartiles]
    limits = min(quartiles), max(quartiles)

    def panel(one: Sensitivity) -> Panel:
        loss = "" if math.isnan(one.loss) else f": {one.loss:.0%}{'' if one.matters else ' (chance)'}"
        medians = ", ".join(f"{number(b.quartiles[1])} at {one.axis.text(b.place)}" for b in one.bins)
        alt = f"Median value by {one.axis.name}: {medians}."
        return Panel(f"{one.axis.name}{loss}", alt, partial(drawing.draw_sensitivity, found=one, limits=limits))

    return Chart(
        "sensitivity",
        "Sensitivity",
        "Median and middle half of the values, by setting. The number is the share of the range of values that is "
        "lost, on average, in the other bins than the best; “chance” stands where a setting without influence could "
        "come to as much. Pruned and cut trials are in it with the value at which they were given up, and the other "
        "settings vary along: to measure sensitivity itself, tune with --sampler qmc --pruner none.",
        [panel(one) for one in found],
        AMONG_OTHERS,
    )
