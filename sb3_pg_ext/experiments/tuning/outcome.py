"""What the final choice and its verdict have come to, read from their stores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from scipy import stats

from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import Estimate
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.tuning.choice import DEFAULTS, START, standing, worth
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.tuning.tuning import WINNER_FILE

TUNED = "tuned"
_FEWEST_FOR_INTERVAL = 4  # pairs of runs


@dataclass(frozen=True)
class Contender:
    """Settings and their runs on fresh seeds.

    :param label: ``trial <number>``, ``tuned``, ``defaults`` or ``start``
    :param arguments: that were given
    :param records: of its runs, finished or not
    :param value: of the finished ones together, as of a trial; NaN without any
    :param in_tuning: value of its trial; NaN for the rival
    """

    label: str
    arguments: Mapping[str, Any]
    records: tuple[Record, ...]
    value: float
    in_tuning: float = math.nan

    @property
    def scores(self) -> dict[int, float]:
        """Replicate -> final return of the run."""
        return {r.spec.replicate: r.final_return for r in self.records if r.status == "finished"}


@dataclass(frozen=True)
class Outcome:
    """How far choice and verdict are.

    :param contenders: of the choice, the best first
    :param winner: of the choice; ``None`` as long as there is no verdict
    :param tuned: the winner on the seeds that judge it; ``None`` if that is the rival
    :param rival: the same of the defaults, or of the settings that were given to stand for them
    """

    contenders: tuple[Contender, ...]
    winner: Contender | None = None
    tuned: Contender | None = None
    rival: Contender | None = None

    @property
    def unfinished(self) -> int:
        """Number of runs that are missing or have failed."""
        all_of_them = (*self.contenders, *(c for c in (self.tuned, self.rival) if c is not None))
        return sum(record.status != "finished" for c in all_of_them for record in c.records)

    @property
    def unpaired(self) -> int:
        """Number of seeds of the verdict on which the winner, the rival or both have not finished their runs."""
        judged = [c for c in (self.tuned, self.rival) if c is not None]
        return len({record.spec.replicate for c in judged for record in c.records}) - len(self.differences)

    @property
    def differences(self) -> list[float]:
        """Final return of the winner less that of the rival, for each seed that both have finished."""
        if self.tuned is None or self.rival is None:
            return []
        theirs = self.rival.scores
        return [score - theirs[number] for number, score in self.tuned.scores.items() if number in theirs]

    @property
    def advantage(self) -> Estimate | None:
        """Mean difference with its 95 % interval of Student's t: a bootstrap of five differences is far too narrow."""
        differences = self.differences
        if not differences:
            return None
        if len(differences) < _FEWEST_FOR_INTERVAL:
            return Estimate(float(np.mean(differences)), math.nan, math.nan)
        mean, scale = float(np.mean(differences)), stats.sem(differences)
        half = float(stats.t.ppf(0.975, len(differences) - 1) * scale)
        return Estimate(mean, mean - half, mean + half)


def outcome(plan: Plan, trials: Sequence[FrozenTrial], folder: Path) -> Outcome | None:
    """The outcome so far; ``None`` if there has been no choice.

    :param trials: of the study, by number
    :param folder: of the tuning
    """
    contenders = [_with_trial(each, trials) for each in _contenders(plan, folder / "choice")]
    contenders = _with_the_steps_of_the_rival(contenders)
    if not contenders:
        return None
    decided = _decided(folder)
    if decided:
        contenders = [each for each in contenders if each.label in decided["labels"]]
    ranked = sorted(
        contenders, key=lambda c: standing(c.label, -math.inf if math.isnan(c.value) else c.value), reverse=True
    )
    winner = next((each for each in ranked if decided and each.label == decided["winner"]), None)
    if winner is None:
        return Outcome(tuple(ranked))
    judged = {each.label: each for each in _contenders(plan, folder / "verdict")}
    rival = judged.get(START if START in {each.label for each in contenders} else DEFAULTS)
    return Outcome(tuple(ranked), winner, None if winner.label in (DEFAULTS, START) else judged.get(TUNED), rival)


def _decided(folder: Path) -> dict[str, Any] | None:
    """The winner of the choice that was made last, and who stood for it: stores keep the runs of earlier ones too."""
    if not (folder / WINNER_FILE).is_file():
        return None
    content = json.loads((folder / WINNER_FILE).read_text(encoding="utf-8"))
    return {"winner": content["label"], "labels": {each["label"] for each in content["contenders"]}}


def _contenders(plan: Plan, folder: Path) -> list[Contender]:
    if not (folder / FILE_NAME).is_file():
        return []
    with Store(folder / FILE_NAME, read_only=True) as store:
        records = store.records()
    return [
        _contender(plan, label, [record for record in records if record.spec.label == label])
        for label in dict.fromkeys(record.spec.label for record in records)
    ]


def _contender(plan: Plan, label: str, records: Sequence[Record]) -> Contender:
    scores = [record.final_return for record in records if record.status == "finished"]
    value = worth(scores) if scores else math.nan
    return Contender(label, records[0].spec.arguments, tuple(records), value)


def _with_trial(contender: Contender, trials: Sequence[FrozenTrial]) -> Contender:
    number = contender.label.removeprefix("trial ")
    known = number.isdigit() and int(number) < len(trials)
    value = trials[int(number)].value if known else None
    return Contender(
        contender.label, contender.arguments, contender.records, contender.value, math.nan if value is None else value
    )


def _with_the_steps_of_the_rival(contenders: Sequence[Contender]) -> list[Contender]:
    """Without those of an earlier choice whose runs had another length; the rival is in every choice."""
    steps = {c.records[0].spec.total_steps for c in contenders if c.label in (DEFAULTS, START)}
    return [c for c in contenders if c.records[0].spec.total_steps in steps]
