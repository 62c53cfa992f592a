"""Whether a comparison is settled, or which seeds are still needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import (
    Decision,
    Design,
    probability_of_improvement,
    seeds_to_resolve,
    settle,
)
from sb3_pg_ext.experiments.summary import Summary, all_imported, number

HEADER = ("decision", "A", "B", "difference", "seeds of A, B", "next look needs", "80 % power")
_NONE = "–"
_TOO_MANY_TO_NAME = 3
_FEW, _MANY = 3, 999  # seeds of each: with fewer, a number of seeds is no estimate; beyond, it is no plan


@dataclass(frozen=True)
class Lack:
    """What an algorithm lacks for a look.

    :param waiting: the seeds whose runs are asked for and not yet finished
    :param more: how many seeds are needed besides
    """

    waiting: tuple[int, ...]
    more: int

    @property
    def total(self) -> int:
        return len(self.waiting) + self.more

    def cell(self) -> str:
        """``seed 0, +3``."""
        parts = [_seeds(self.waiting)] if self.waiting else []
        return ", ".join([*parts, f"+{self.more}"] if self.more or not parts else parts)

    def sentence(self, labels: str, n: int) -> str:
        """``seed 0 of a2c is still to come, and 3 more``.

        :param labels: the ``n`` that lack it
        """
        if not self.waiting:
            return f"{self.more} more of {'each of ' if n > 1 else ''}{labels}"
        verb = "is" if len(self.waiting) * n == 1 else "are"
        besides = f", and {self.more} more{' of each' if n > 1 else ''}" if self.more else ""
        return f"{_seeds(self.waiting)} of {labels} {verb} still to come{besides}"


@dataclass(frozen=True)
class Advice:
    """What the runs in one environment say of each pair, and what they need to say more.

    :param runs: label -> runs that have not failed, in the order of their seeds
    :param decisions: of all pairs
    :param resolving: pair of labels -> about how many seeds of each would show a difference like the one that is seen
    :param failed: how many failed runs were passed over
    :param survivors: label -> how many of its runs failed, of those that have others
    :param left_out: labels that have nothing but failed runs
    :param imported: labels whose runs were made elsewhere, and which are left out for it
    """

    env_id: str
    design: Design
    runs: Mapping[str, Sequence[Record]]
    decisions: Sequence[Decision]
    resolving: Mapping[frozenset[str], float]
    failed: int
    survivors: Mapping[str, int]
    left_out: Sequence[str]
    imported: Sequence[str]

    @cached_property
    def scores(self) -> dict[str, list[float]]:
        """Label -> final returns, in the order of the seeds, as far as no run is missing."""
        return {label: _in_order(runs) for label, runs in self.runs.items()}

    @property
    def open(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.state == "open"]

    @property
    def looks(self) -> int:
        """How many looks there were."""
        return max((decision.looks for decision in self.decisions), default=0)

    @cached_property
    def lacks(self) -> dict[str, Lack]:
        """Label -> what it lacks for the next look, those left out that lack nothing."""
        labels = dict.fromkeys(label for decision in self.open for label in (decision.first, decision.second))
        lacks = {label: _lack(self.runs[label], (self.looks + 1) * self.design.size) for label in labels}
        return {label: lack for label, lack in lacks.items() if lack.total}

    def rows(self) -> list[tuple[str, ...]]:
        """Texts for the columns of :data:`HEADER`, open pairs first."""
        order = {"open": 0, "equal": 1, "different": 2}
        return [self._row(decision) for decision in sorted(self.decisions, key=lambda each: order[each.state])]

    def _row(self, decision: Decision) -> tuple[str, ...]:
        labels = (decision.first, decision.second)
        needs = "; ".join(self.lacks.get(label, Lack((), 0)).cell() for label in labels)
        return (
            self._decision(decision),
            *labels,
            _NONE if math.isnan(decision.difference) else number(decision.difference),
            ", ".join(str(sum(run.status == "finished" for run in self.runs[label])) for label in labels),
            needs if decision.state == "open" else _NONE,
            _NONE if decision.state == "different" else _about(self.resolving.get(frozenset(labels), math.inf)),
        )

    def _decision(self, decision: Decision) -> str:
        n_seeds = decision.looks * self.design.size
        if decision.state == "different":
            return f"different, by {n_seeds} seeds"
        return "more seeds needed" if decision.state == "open" else f"equal, as far as {n_seeds} seeds tell"

    def sentence(self) -> str:
        """The whole in a few words."""
        state = self._state() if self.decisions else "There is no pair of algorithms with runs to compare."
        return " ".join([state, *self._remarks()])

    def _state(self) -> str:
        if not self.open:
            return f"Settled: every pair is decided, by {self.looks * self.design.size} seeds of each algorithm."
        verb = "is" if len(self.open) == 1 else "are"
        state = f"{len(self.open)} of {len(self.decisions)} pairs {verb} open after look {self.looks}"
        state = f"{state} of {self.design.groups}" if self.looks else "there are too few seeds for a look"
        takes = f"look {self.looks + 1} takes {(self.looks + 1) * self.design.size} finished seeds of each"
        return f"Not settled: {state}; {takes}: {self._lacking()}."

    def _lacking(self) -> str:
        """What is lacking, those together that lack the same."""
        alike: dict[Lack, list[str]] = {}
        for label, lack in self.lacks.items():
            alike.setdefault(lack, []).append(label)
        return "; ".join(lack.sentence(self._named(labels), len(labels)) for lack, labels in alike.items())

    def _named(self, labels: Sequence[str]) -> str:
        if len(labels) == len(self.runs) > _TOO_MANY_TO_NAME:
            return f"the {len(labels)} algorithms"
        return f"{', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else labels[0]

    def _remarks(self) -> list[str]:
        first, found = self.design.first_look or 1, []
        if self.open and self.looks + 1 < first:
            found.append(f"Nothing can be decided before look {first}, at {first * self.design.size} seeds.")
        if self.failed:
            found.append(f"{self.failed} failed {'run was' if self.failed == 1 else 'runs were'} passed over.")
        if self.survivors:
            each = ", ".join(f"{label} (without {n} that failed)" for label, n in self.survivors.items())
            found.append(f"Runs that do not fail are all that is compared of {each}.")
        if self.left_out:
            found.append(f"Nothing but failures: {', '.join(self.left_out)}.")
        if self.imported:
            found.append(f"Left out, being imported, so that no seeds can be added: {', '.join(self.imported)}.")
        if only_imported := [label for label in self.lacks if all_imported(self.runs[label])]:
            found.append(f"More seeds can only be imported: {', '.join(only_imported)}.")
        return found


def advise(comparison: Comparison, env_id: str, design: Design | None = None, imported: bool = False) -> Advice:
    """What the finished runs in ``env_id`` have decided.

    Runs count in the order of their seeds. A failed one is passed over; one that is still to come holds up those after
    it, so that what was in a group once stays in it.

    :param imported: whether runs that were made elsewhere are compared too, although no seeds can be added to them
    """
    design = design or Design()
    everything = comparison.within(env_id)
    elsewhere = [] if imported else [s.label for s in everything if s.imported]
    summaries = [summary for summary in everything if summary.label not in elsewhere]
    hopeless = [s.label for s in summaries if len(s.failed) == len(s.records)]
    runs = {s.label: _not_failed(s) for s in summaries if s.label not in hopeless}
    scores = {label: _in_order(records) for label, records in runs.items()}
    decisions = settle(scores, design)
    failed = sum(len(summary.failed) for summary in summaries)
    survivors = {s.label: len(s.failed) for s in summaries if s.failed and s.label in runs}
    resolving = _resolving(scores, decisions, design)
    return Advice(env_id, design, runs, decisions, resolving, failed, survivors, hopeless, elsewhere)


def _not_failed(summary: Summary) -> list[Record]:
    return [record for record in summary.records if record.status != "failed"]


def _in_order(runs: Iterable[Record]) -> list[float]:
    return [record.final_return for record in takewhile(lambda record: record.status == "finished", runs)]


def _lack(runs: Sequence[Record], needed: int) -> Lack:
    waiting = (record.spec.replicate for record in runs[:needed] if record.status != "finished")
    return Lack(tuple(waiting), max(needed - len(runs), 0))


def _resolving(
    scores: Mapping[str, Sequence[float]], decisions: Iterable[Decision], design: Design
) -> dict[frozenset[str], float]:
    """From the seeds of the decision, before the first look from those that there are for it."""
    found, n_pairs = {}, math.comb(len(scores), 2)
    for pair in decisions:
        a, b = (scores[label][: max(pair.looks, 1) * design.size] for label in (pair.first, pair.second))
        if min(len(a), len(b)) >= _FEW:
            improvement = probability_of_improvement([a], [b], resamples=1).point  # its interval is not looked at
            found[frozenset((pair.first, pair.second))] = seeds_to_resolve(improvement, n_pairs, design.alpha)
    return found


def _seeds(numbers: Sequence[int]) -> str:
    """``seeds 0 to 4, 7``."""
    rows = [[n for _, n in row] for _, row in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    parts = [f"{row[0]} to {row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows]
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(parts)}"


def _about(n_seeds: float) -> str:
    return _NONE if math.isinf(n_seeds) else f"≈ {n_seeds:.0f} seeds" if n_seeds <= _MANY else f"> {_MANY} seeds"


def explanation(design: Design) -> str:
    """How the decisions are to be read."""
    looks = ", ".join(str(look * design.size) for look in range(1, design.groups + 1))
    return (
        f"By a test that is repeated at {looks} seeds of each algorithm (AdaStop, Mathieu et al. 2024). Returns that "
        "have the same distribution are called different, in any pair of an environment and at any look, with at most "
        f"probability {design.alpha:g}, if these numbers were fixed before the first look; p-values for a fixed number "
        "of seeds do not allow to add some and look again."
    )


POWER = (
    "80 % power: the seeds of each algorithm with which four of five studies would find a difference of the size seen, "
    "at one look (Noether 1987); an estimate from the seeds of the last look, before the first from those that there "
    f"are, with {_FEW} of each at least, and too low where the difference is large by luck."
)
