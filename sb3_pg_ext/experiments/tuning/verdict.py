"""What choice and verdict say, in words."""

from __future__ import annotations

import math
from typing import Any

from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning.choice import DEFAULTS, START
from sb3_pg_ext.experiments.tuning.outcome import Contender, Outcome
from sb3_pg_ext.experiments.values import as_text

_NONE = "–"


def outcome_text(found: Outcome) -> dict[str, Any]:
    judged = [c for c in (found.tuned, found.rival) if c is not None]
    return {
        "sentences": verdict(found),
        "contenders": [
            (*_result(c), number(c.in_tuning) if c.in_tuning == c.in_tuning else _NONE) for c in found.contenders
        ],
        "settings": [(c.label, _arguments(c)) for c in found.contenders],
        "judged": [_result(c) for c in judged],
        "steps": f"{found.contenders[0].records[0].spec.total_steps:,}",
        "unfinished": found.unfinished,
    }


def _known(value: float) -> str:
    return _NONE if math.isnan(value) else number(value)


def _result(contender: Contender) -> tuple[str, str, str, str]:
    """Label, mean, worst and all scores."""
    scores = list(contender.scores.values())
    if not scores:
        return contender.label, _NONE, _NONE, "no run is finished"
    return contender.label, number(contender.value), number(min(scores)), ", ".join(map(number, scores))


def _arguments(contender: Contender) -> str:
    given = {name: setting for name, setting in contender.arguments.items() if name != "device"}
    return ", ".join(f"{name}={as_text(setting)}" for name, setting in given.items()) or "nothing but what is fixed"


def verdict(found: Outcome) -> list[str]:
    if found.winner is None:
        return [f"{found.contenders[0].label.capitalize()} is in the lead on fresh seeds; the verdict is not in yet."]
    if found.winner.label in (DEFAULTS, START):
        return [f"On fresh seeds no trial does better than the {found.winner.label}: that is the choice."]
    advantage, differences = found.advantage, found.differences
    if advantage is None or found.rival is None:
        return [f"{found.winner.label.capitalize()} has been chosen; the runs that judge it are not finished."]
    seeds = "one seed" if len(differences) == 1 else f"{len(differences)} seeds"
    rival = found.rival.label
    far = f"{number(abs(advantage.point))} {'above' if advantage.point > 0 else 'below'}"
    better = sum(each > 0 for each in differences)
    first = (
        f"{found.winner.label.capitalize()} has been chosen. On {seeds} that had no part in search "
        f"and choice its mean is {far if advantage.point else 'equal to'} that of the {rival}, and it is better on "
        f"{better} of {len(differences)}."
    )
    if found.unpaired:
        n_seeds = len(differences) + found.unpaired
        first += f" Left out, since a run on them is not finished: {found.unpaired} of {n_seeds} seeds."
    if math.isnan(advantage.low):
        return [first, "That is too few for an interval: take it as a hint."]
    interval = f"95 % interval of the difference: {number(advantage.low)} to {number(advantage.high)}."
    if advantage.low > 0:
        return [first, f"{interval} The tuned settings are better."]
    if advantage.high < 0:
        return [first, f"{interval} The {rival} did better: the search has fitted its own seeds."]
    return [first, f"{interval} Which of the two is better cannot be told from these seeds."]
