"""Whether a comparison is settled, or which seeds are still needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.statistics import Decision, Design, missing_seeds, seeds_to_resolve, settle
from sb3_pg_ext.experiments.summary import Summary, number

HEADER = ("decision", "A", "B", "difference", "seeds of A, B", "next look needs", "80 % power")
_NONE = "–"
_MANY = 999


@dataclass(frozen=True)
class Advice:
    """What the runs in one environment say of each pair, and what they need to say more.

    :param scores: label -> final returns, in the order of the seeds, as far as no run is missing
    :param decisions: of all pairs
    :param resolving: pair of labels -> about how many seeds of each would show a difference like the one that is seen
    :param failed: how many failed runs were passed over
    :param left_out: labels that have nothing but failed runs
    """

    env_id: str
    design: Design
    scores: dict[str, list[float]]
    decisions: Sequence[Decision]
    resolving: dict[frozenset[str], float]
    failed: int
    left_out: Sequence[str]

    @property
    def open(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.state == "open"]

    @property
    def looks(self) -> int:
        """How many looks there were."""
        return max((decision.looks for decision in self.decisions), default=0)

    @property
    def needed(self) -> dict[str, int]:
        """Label -> how many seeds it lacks for the next look, those left out that lack none."""
        pairs = [(decision.first, decision.second) for decision in self.open]
        return missing_seeds(self.scores, pairs, (self.looks + 1) * self.design.size)

    def rows(self) -> list[tuple[str, ...]]:
        """Texts for the columns of :data:`HEADER`, open pairs first."""
        order = {"open": 0, "equal": 1, "different": 2}
        return [self._row(decision) for decision in sorted(self.decisions, key=lambda each: order[each.state])]

    def _row(self, decision: Decision) -> tuple[str, ...]:
        labels = (decision.first, decision.second)
        needs = ", ".join(f"+{self.needed.get(label, 0)}" for label in labels)
        return (
            self._decision(decision),
            *labels,
            _NONE if math.isnan(decision.difference) else number(decision.difference),
            ", ".join(str(len(self.scores[label])) for label in labels),
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
        lacking = ", ".join(f"{n} more of {label}" for label, n in self.needed.items())
        return f"Not settled: {state}; {takes}: {lacking}."

    def _remarks(self) -> list[str]:
        first, found = self.design.first_look or 1, []
        if self.open and self.looks + 1 < first:
            found.append(f"Nothing can be decided before look {first}, at {first * self.design.size} seeds.")
        if self.failed:
            found.append(f"{self.failed} failed {'run was' if self.failed == 1 else 'runs were'} passed over.")
        if self.left_out:
            found.append(f"Nothing but failures: {', '.join(self.left_out)}.")
        return found


def advise(comparison: Comparison, env_id: str, design: Design | None = None) -> Advice:
    """What the finished runs in ``env_id`` have decided.

    Runs count in the order of their seeds. A failed one is passed over; one that is still to come holds up those after
    it, so that what was in a group once stays in it.
    """
    design = design or Design()
    summaries = comparison.within(env_id)
    hopeless = [s.label for s in summaries if len(s.failed) == len(s.records)]
    scores = {s.label: _in_order(s) for s in summaries if s.label not in hopeless}
    pairs = comparison.pairs[env_id]
    n_pairs = math.comb(len(scores), 2)
    resolving = {
        frozenset((pair.first, pair.second)): seeds_to_resolve(pair.improvement.point, n_pairs, design.alpha)
        for pair in pairs
    }
    failed = sum(len(summary.failed) for summary in summaries)
    return Advice(env_id, design, scores, settle(scores, design), resolving, failed, hopeless)


def _in_order(summary: Summary) -> list[float]:
    scores = []
    for record in summary.records:
        if record.status == "finished":
            scores.append(record.final_return)
        elif record.status != "failed":
            break
    return scores


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
    "at one look (Noether 1987); an estimate from the runs that there are, and too low where the difference is large "
    "by luck."
)
