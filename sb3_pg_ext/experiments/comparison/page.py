"""The page of a comparison: what it says, in the order of :file:`report.html.j2`, which says how it looks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.comparison import advice
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import (
    SETTINGS_HEADER,
    coverage,
    explanation,
    failures,
    left_out,
    provenance_rows,
    settings_rows,
    state_line,
)
from sb3_pg_ext.experiments.comparison.looks import crowded, looks
from sb3_pg_ext.experiments.figure import VARIABLES
from sb3_pg_ext.experiments.html import render
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import (
    AGGREGATES,
    Design,
    Pair,
    guaranteed_share,
    least_p_value,
    mean,
    median,
    stratified_interval,
    tolerance_interval,
    worst_mean,
)
from sb3_pg_ext.experiments.summary import (
    HEADER,
    Summary,
    best_of,
    estimate_text,
    number,
    p_value_text,
    point_text,
    probability_text,
)
from sb3_pg_ext.experiments.values import as_text

_TEMPLATE = "comparison/report.html.j2"
_NONE = "–"
_WIDTH_OF_SAMPLES = 2.6  # of the lines in the legend
_FEW_PAIRS = 10
_LEVEL = 0.05
_SPREAD_HEADER = ("algorithm", "mean [95 %]", "median [95 %]", "worst quarter", "worst to best", "holds", "above worst")
_PAIR_HEADER = ("A", "B", "P(A > B) [95 %]", "p", "corrected")


def page(
    comparison: Comparison,
    folder: Path,
    commands: Sequence[str] = (),
    pictures: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as text.

    :param commands: by which the runs were asked for
    :param pictures: titles, captions and SVG elements
    :param notes: what the reader should know besides
    :raises ModuleNotFoundError: jinja2 is not installed
    """
    records = comparison.records
    return render(
        _TEMPLATE,
        title=f"Comparison in {', '.join(comparison.env_ids)}",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        folder=shlex.quote(str(folder)),
        state=state_line(records).strip("*"),
        notes=notes,
        cards=_cards(comparison),
        legend=_legend(comparison),
        header=HEADER,
        environments=[_environment(comparison, env_id) for env_id in comparison.env_ids],
        failed_runs=failures(comparison),
        coverage=coverage(comparison),
        explanation=[(what, text.replace("*", "")) for what, text in explanation(records)],
        spread_header=_SPREAD_HEADER,
        pair_header=_PAIR_HEADER,
        few_pairs=_FEW_PAIRS,
        advice_header=advice.HEADER,
        advice=[advice.advise(comparison, env_id) for env_id in comparison.env_ids],
        advice_explanation=f"{advice.explanation(Design())} {advice.POWER}",
        aggregates=_aggregates(comparison),
        no_aggregates=_no_aggregates(comparison),
        pictures=pictures,
        settings_header=SETTINGS_HEADER,
        settings=settings_rows(comparison.summaries),
        failures=[_failure(record) for record in records if record.status == "failed"],
        unfinished=sum(record.status in ("pending", "running") for record in records),
        commands=commands,
        provenance=provenance_rows(records),
    )


def _cards(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(what, number, remark) for the head of the page."""
    records = comparison.records
    counts = {status: sum(record.status == status for record in records) for status in ("finished", "failed")}
    missing = len(records) - sum(counts.values())
    remark = ", ".join(f"{n} {what}" for n, what in ((counts["failed"], "failed"), (missing, "missing")) if n)
    cards = [("runs finished", f"{counts['finished']} of {len(records)}", remark or "none failed, none missing")]
    for env_id in comparison.env_ids[:4]:
        if best := best_of(comparison.within(env_id)):
            cards.append((f"highest in {env_id}", _final(best[0]), _together([summary.label for summary in best])))
    return cards


def _final(summary: Summary) -> str:
    return _NONE if summary.final is None else point_text(summary.final)


def _together(labels: Sequence[str]) -> str:
    """``cmaes and 2 others``."""
    others = f"{len(labels) - 1} others" if len(labels) > 2 else labels[-1]
    return f"{labels[0]} and {others}" if len(labels) > 1 else labels[0]


def _legend(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(label, colour, dashes) of the lines in the figures; nothing if each picture has its own."""
    if crowded(comparison):
        return []
    return [
        (label, f"var({VARIABLES[look.colour]})", " ".join(f"{dash * _WIDTH_OF_SAMPLES:g}" for dash in look.dashes))
        for label, look in looks(comparison, comparison.labels).items()
    ]


# --- one environment


def _environment(comparison: Comparison, env_id: str) -> dict[str, Any]:
    summaries = comparison.within(env_id)
    pairs = comparison.pairs[env_id]
    return {
        "id": env_id,
        "rows": [summary.row() for summary in summaries],
        "spread": [_spread(comparison.finals(s.label, env_id), s.name) for s in summaries if s.finished],
        "pairs": [_pair(pair, {s.label: s.name for s in summaries}) for pair in pairs],
        "verdict": _verdict(comparison, env_id, pairs),
        "all_header": _seeds_header(summaries),
        "all": [_seeds(summary, len(_seeds_header(summaries)) - 1) for summary in summaries],
        "hyperparameters": _hyperparameters([s for s in comparison.summaries if s.env_id == env_id]),
    }


def _spread(finals: Any, label: str) -> tuple[str, ...]:
    tolerance = tolerance_interval(finals)
    share = guaranteed_share(len(finals))
    holds = f"≥ {share:.0%} of runs" if share else _NONE
    if not math.isnan(tolerance[0]):
        holds += f"; ≥ 90 % in {number(tolerance[0])} to {number(tolerance[1])}"
    return (
        label,
        estimate_text(stratified_interval([finals], mean)),
        estimate_text(stratified_interval([finals], median)),
        number(float(worst_mean(finals))),
        f"{number(finals.min())} to {number(finals.max())}",
        holds,
        f"≥ {guaranteed_share(len(finals), one_sided=True):.0%}",
    )


def _pair(pair: Pair, names: Mapping[str, str]) -> tuple[str, ...]:
    p_values = (p_value_text(pair.p_value), p_value_text(pair.corrected))
    return (names[pair.first], names[pair.second], probability_text(pair.improvement), *p_values)


def _verdict(comparison: Comparison, env_id: str, pairs: Sequence[Pair]) -> str:
    """What the corrected tests say, and whether they could have said anything."""
    if not pairs:
        return "There is no pair of algorithms with finished runs to compare."
    found = [pair for pair in pairs if pair.corrected < _LEVEL]
    if found:
        return "Different beyond chance at 5 %: " + "; ".join(f"{p.first} and {p.second}" for p in found) + "."
    sizes = {s.label: len(s.finished) for s in comparison.within(env_id)}
    least = min(least_p_value(sizes[pair.first], sizes[pair.second]) for pair in pairs) * len(pairs)
    if least >= _LEVEL:
        return (
            f"So few runs cannot show any difference at 5 %, however large it is: the smallest corrected p-value that "
            f"{len(pairs)} {'pairs' if len(pairs) > 1 else 'pair'} can have with them is {min(least, 1.0):.2f}. "
            "More seeds are needed."
        )
    return "No difference is beyond chance at 5 %; this does not say that there is none."


def _seeds_header(summaries: Sequence[Summary]) -> list[str]:
    replicates = {record.spec.replicate for summary in summaries for record in summary.records}
    return ["algorithm", *(f"seed {number}" for number in range(max(replicates) + 1))]


def _seeds(summary: Summary, n: int) -> list[str]:
    """The final return of every run, or why there is none."""
    known = {record.spec.replicate: _cell(record) for record in summary.records}
    return [summary.label, *(known.get(number, _NONE) for number in range(n))]


def _cell(record: Record) -> str:
    if record.status == "finished":
        return number(record.final_return)
    if record.status == "running":
        return f"running ({record.step / record.spec.total_steps:.0%})"
    return "failed" if record.status == "failed" else "missing"


def _hyperparameters(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every setting of every algorithm, defaults included."""
    settings = [summary.records[0].spec.hyperparameters for summary in summaries]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [[name, *(as_text(each[name]) if name in each else _NONE for each in settings)] for name in sorted(names)]
    return ["setting", *(summary.label for summary in summaries)], rows


def _failure(record: Record) -> tuple[str, str, str]:
    error = (record.error or "no reason is known").strip()
    return record.spec.name, error.splitlines()[-1], error


# --- all environments


def _aggregates(comparison: Comparison) -> dict[str, Any] | None:
    if not comparison.aggregates:
        return None
    rows = [
        (comparison.name(label), *(estimate_text(row[name]) for name in AGGREGATES), f"{comparison.n_finished(label)}")
        for label, row in comparison.aggregates.items()
    ]
    return {
        "header": ["algorithm", *(f"{name} [95 %]" for name in AGGREGATES), "runs"],
        "rows": rows,
        "references": [
            (e, number(comparison.references[e].low), number(comparison.references[e].high)) for e in comparison.env_ids
        ],
        "left_out": left_out(comparison, comparison.complete),
    }


def _no_aggregates(comparison: Comparison) -> str:
    """Why there are no aggregates over environments, if there could be any."""
    if comparison.aggregates or not comparison.several:
        return ""
    if comparison.without_reference:
        return (
            "Returns of different environments are in different units, so they are not put together in one number: "
            f"there are no reference scores for {', '.join(comparison.without_reference)}. With "
            "“sb3-pg report FOLDER --reference FILE.yml” (ENV: {low: ..., high: ...}) the aggregates are here."
        )
    return "No algorithm has a finished run in every environment yet, so that nothing can be aggregated over them."
