"""The page of a tuning: what it says, in the order of :file:`report.html.j2`, which says how it looks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.html import render
from sb3_pg_ext.experiments.progress import duration
from sb3_pg_ext.experiments.seeds import Seeds, tuning_seeds
from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning.axes import Axis
from sb3_pg_ext.experiments.tuning.choice import rounded
from sb3_pg_ext.experiments.tuning.config_entry import departures
from sb3_pg_ext.experiments.tuning.fate import fate_of, fate_text
from sb3_pg_ext.experiments.tuning.outcome import Contender, Outcome, outcome
from sb3_pg_ext.experiments.tuning.overview import Overview, value_of
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.tuning.sensitivity import Bin
from sb3_pg_ext.experiments.tuning.verdict import outcome_text
from sb3_pg_ext.experiments.values import as_text, merge
from sb3_pg_ext.spec import OneMinus

_TEMPLATE = "tuning/report.html.j2"
_LEADERS = 5
_NONE = "–"


def page(
    study: Study,
    overview: Overview,
    folder: Path,
    pictures: Sequence[Mapping[str, Any]] = (),
    shares: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    dashboard: str | None = None,
) -> str:
    """The page as text.

    :param pictures: titles, captions and SVG elements
    :param shares: importance of each setting
    :param notes: what the reader should know of the figures
    :param dashboard: the command that shows the trials in a browser
    :raises ModuleNotFoundError: jinja2 is not installed
    """
    return render(
        _TEMPLATE,
        study_name=study.study_name,
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        folder=str(folder),
        pictures=pictures,
        notes=notes,
        influence=_influence(overview, shares or {}),
        dashboard=dashboard,
        **_about_trials(overview),
        **_about_outcome(overview, outcome(overview.plan, overview.trials, folder)),
        **_origin(study),
    )


def _about_outcome(overview: Overview, found: Outcome | None) -> dict[str, Any]:
    plan = overview.plan
    return {
        "plan": plan,
        "description": _description(plan),
        "protocol": _protocol(overview, found),
        "cards": _cards(overview, found),
        "outcome": found and outcome_text(found),
        "train": _training_command(overview, found),
    }


def _about_trials(overview: Overview) -> dict[str, Any]:
    return {
        "space": _space(overview),
        "state": _state(overview),
        "leaders": _leaders(overview),
        "failures": [_failure(trial) for trial in overview.failed],
        "not_counted": [(trial.number, _why_not_counted(trial)) for trial in overview.not_counted],
        "header": ["trial", "state", "value", "runs", "time", *(axis.name for axis in overview.axes)],
        "rows": [_row(overview, trial) for trial in overview.shown],
    }


def _origin(study: Study) -> dict[str, Any]:
    calls = study.user_attrs.get("calls", [])
    commands = [call["command"] for call in calls if " tune " in call["command"]]
    return {
        "calls": calls,
        "versions": study.user_attrs.get("versions", {}),
        "go_on": commands[-1] if commands else None,
    }


# --- what was tuned


def _description(plan: Plan) -> list[str]:
    seeds = "one seed" if plan.seeds_per_trial == 1 else f"the same {plan.seeds_per_trial} seeds"
    mode = "deterministic" if plan.deterministic else "stochastic"
    value = "the same" if plan.seeds_per_trial == 1 else f"the {plan.aggregate} of these"
    fixed = merge({} if plan.n_envs is None else {"n_envs": plan.n_envs}, plan.arguments)
    around = ", ".join(f"{name}={as_text(setting)}" for name, setting in fixed.items())
    kwargs = ", ".join(f"{name}={as_text(setting)}" for name, setting in plan.env_kwargs.items())
    return [
        f"Every trial trains {plan.algo} in {plan.env_id} with {seeds}, {plan.total_steps:,} environment steps a run. "
        f"A run is evaluated every {plan.every:,} steps in {plan.episodes} {mode} episodes; its score is the mean "
        f"return of the last evaluation, and the value of the trial is {value}.",
        f"Fixed in all trials: {around or 'nothing'}. What is neither fixed nor searched has its default.",
        *([f"The environment was made with {kwargs}."] if kwargs else []),
    ]


def _space(overview: Overview) -> list[tuple[str, ...]]:
    defaults = merge(registry.get(overview.plan.algo).defaults, overview.plan.arguments)
    best = overview.best
    rows: list[tuple[str, ...]] = []
    for axis in overview.axes:
        words = f"{axis.words}, if {axis.condition}" if axis.condition else axis.words
        rows.append((axis.name, words, as_text(_under(defaults, axis.name)), _setting(axis, best) if best else _NONE))
    return rows


def _under(settings: Any, name: str) -> Any:
    """What is under a dotted name."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _setting(axis: Axis, trial: FrozenTrial) -> str:
    place = axis.place(trial)
    return _NONE if place is None else axis.text(place)


def _protocol(overview: Overview, found: Outcome | None) -> list[tuple[str, ...]]:
    plan, rival = overview.plan, overview.name_of_first
    tuning = [tuning_seeds(plan.master_seed, k) for k in range(plan.seeds_per_trial)]
    contenders = found.contenders if found else ()
    judged = [c for c in (found.tuned, found.rival) if c is not None] if found else []
    return [
        ("search", "every trial, all with the same seeds", *_seeds(tuning, with_test=False)),
        ("choice", f"the best trials and the {rival}, once more", *_seeds(_seeds_of(contenders))),
        ("verdict", f"the chosen settings and the {rival}", *_seeds(_seeds_of(judged))),
    ]


def _seeds_of(contenders: Sequence[Contender]) -> list[Seeds]:
    return list(dict.fromkeys(record.spec.seeds for contender in contenders for record in contender.records))


def _seeds(seeds: Sequence[Seeds], with_test: bool = True) -> tuple[str, str, str]:
    if not seeds:
        return ("not yet",) * 3

    def listed(numbers: list[int]) -> str:
        return ", ".join(map(str, numbers[:5])) + (f", … ({len(numbers)} in all)" if len(numbers) > 5 else "")

    test = listed([s.test for s in seeds]) if with_test else "none"
    return listed([s.train for s in seeds]), listed([s.evaluation for s in seeds]), test


# --- what has come of it


def _cards(overview: Overview, found: Outcome | None) -> list[tuple[str, str, str]]:
    """(what, number, remark) for the head of the page."""
    ended = sum(map(len, (overview.completed, overview.cut, overview.pruned, overview.failed)))
    parts = (
        (overview.cut, "cut"),
        (overview.pruned, "pruned"),
        (overview.failed, "failed"),
        (overview.running, "running"),
    )
    remark = ", ".join(f"{len(trials)} {what}" for trials, what in parts if trials)
    cards = [("trials ended", str(ended), remark or "none pruned, none failed")]
    if overview.best is not None:
        cards.append(("best value", number(overview.best.value or 0.0), f"trial {overview.best.number}"))
    if overview.first is not None:
        value = value_of(overview.first)
        state = fate_text(overview.first)
        remark = "same seeds" if state == "completed" else state
        cards.append((overview.name_of_first, _NONE if value is None else number(value), remark))
    if found and found.winner:
        cards.append(("chosen", found.winner.label, "on fresh seeds"))
    return cards


def _state(overview: Overview) -> list[tuple[str, str, str]]:
    spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in overview.shown)
    rows = [
        ("completed", overview.completed, "with all their runs"),
        ("cut", overview.cut, "by the pruner after some of their runs, as worse than the best seed by seed"),
        ("pruned", overview.pruned, "given up early, as others had done better"),
        ("failed", overview.failed, "of themselves; the reasons are below"),
        ("running", overview.running, "when this page was written"),
        ("waiting", overview.waiting, "to be begun, or begun again"),
        ("not counted", overview.not_counted, "lost with their process and done again, or not needed"),
    ]
    counted = [(what, str(len(trials)), why) for what, trials, why in rows if trials]
    return [*counted, ("time", duration(spent), "of all trials together, one after another")] if spent else counted


def _leaders(overview: Overview) -> list[tuple[str, str, str, str]]:
    """The best completed trials: number, value, runs, settings."""
    return [
        (str(trial.number), number(trial.value or 0.0), _scores(trial), _as_typed(trial.user_attrs.get("settings", {})))
        for trial in overview.ranked[:_LEADERS]
    ]


def _as_typed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={as_text(setting)}" for name, setting in rounded(settings).items())


def _scores(trial: FrozenTrial) -> str:
    return ", ".join(map(number, trial.user_attrs.get("scores", []))) or _NONE


def _training_command(overview: Overview, found: Outcome | None) -> str | None:
    """How to train with the chosen settings, or with the best so far."""
    plan, chosen = overview.plan, overview.best
    if found and found.winner and found.winner.label.startswith("trial "):
        chosen = overview.trials[int(found.winner.label.removeprefix("trial "))]
    if chosen is None or (found and found.winner and not found.winner.label.startswith("trial ")):
        return None
    around = {} if plan.n_envs is None else {"n_envs": plan.n_envs}
    settings = departures(plan.algo, merge(around, plan.arguments, rounded(chosen.user_attrs.get("settings", {}))))
    words = ["sb3-pg", "train", "--algo", plan.algo, "--env", plan.env_id, "-n", str(plan.total_steps)]
    words += ["--no-zoo-config", *(["--vec-env", plan.vec_env] if plan.vec_env != "dummy" else [])]
    words += ["--env-kwargs", *(f"{k}:{as_text(v)}" for k, v in plan.env_kwargs.items())] if plan.env_kwargs else []
    words += ["-params", *(f"{k}:{as_text(v)}" for k, v in settings.items())] if settings else []
    return shlex.join(words)


# --- figures in words, troubles, and all trials


def _influence(overview: Overview, shares: Mapping[str, float]) -> list[tuple[str, str, str, str, str]]:
    """Setting, importance, sensitivity, what chance comes to, and the best bin."""
    rows = []
    for each in overview.enough:
        known = not math.isnan(each.loss)
        best = max(each.bins, key=lambda b: b.quartiles[1])
        name = each.axis.name
        rows.append(
            (
                name,
                f"{shares[name]:.0%}" if name in shares else _NONE,
                f"{each.loss:.0%}" if known else _NONE,
                f"{each.chance:.0%}" if known else _NONE,
                _between(each.axis, best),
            )
        )
    return rows


def _between(axis: Axis, places: Bin) -> str:
    """The values of a setting that a bin spans."""
    ends = [axis.text(places.low), axis.text(places.high)]
    if isinstance(axis.dimension, OneMinus):
        ends.reverse()
    return " to ".join(dict.fromkeys(ends))


def _failure(trial: FrozenTrial) -> dict[str, Any]:
    reason = str(trial.user_attrs.get("reason", "")).strip()
    return {
        "number": trial.number,
        "reason": reason.splitlines()[0] if reason else "no reason is known",
        "settings": _as_typed(trial.user_attrs.get("settings", {})),
        "traceback": trial.user_attrs.get("traceback", ""),
    }


def _why_not_counted(trial: FrozenTrial) -> str:
    why = trial.user_attrs.get("lost")
    lost = f"lost with its process, which {why}, and done again" if why else "lost with its process, and done again"
    return str(trial.user_attrs.get("void") or lost)


def _row(overview: Overview, trial: FrozenTrial) -> tuple[str, ...]:
    value, seconds = value_of(trial), trial.user_attrs.get("seconds")
    return (
        str(trial.number),
        fate_text(trial) + (f", the {overview.name_of_first}" if trial is overview.first else ""),
        _NONE if value is None or fate_of(trial) == "failed" else number(value),
        _scores(trial),
        _NONE if seconds is None else duration(seconds),
        *(_setting(axis, trial) for axis in overview.axes),
    )
