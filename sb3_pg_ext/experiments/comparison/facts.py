"""Sentences and tables that the Markdown report and the page have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import COVERAGE_OF_FEW, RESAMPLES
from sb3_pg_ext.experiments.summary import FAILURES, Summary
from sb3_pg_ext.experiments.values import as_text

SETTINGS_HEADER = ("algorithm", "environment", "steps", "copies", "settings that were given")


def state_line(records: Sequence[Record]) -> str:
    """How much of the study there is, in Markdown."""
    finished = sum(record.status == "finished" for record in records)
    failed = sum(record.status == "failed" for record in records)
    missing = len(records) - finished - failed
    if finished == len(records):
        return f"All {finished} runs are finished."
    absent = [f"{failed} failed"] if failed else []
    absent += [f"{missing} missing, so the numbers are provisional"] if missing else []
    return f"**{finished} of {len(records)} runs are finished; {'; '.join(absent)}.**"


def left_out(comparison: Comparison, shown: Container[str]) -> str:
    """The sentences that name the algorithms that are not shown, if there are any, and say why."""
    names = [label for label in comparison.labels if label not in shown]
    n_environments = Counter(summary.label for summary in comparison.summaries)
    elsewhere = [label for label in names if n_environments[label] < len(comparison.env_ids)]
    hopeless = [label for label in names if label not in elsewhere]
    where = " in some environment" if comparison.several else ""
    sentences = [
        f"Left out, not being run in every environment: {', '.join(elsewhere)}." if elsewhere else "",
        f"Left out, for want of a finished run{where}: {', '.join(hopeless)}." if hopeless else "",
    ]
    return " ".join(filter(None, sentences))


def failures(comparison: Comparison) -> str:
    """The sentence that explains :data:`FAILURES`, if any run has failed."""
    each = [
        f"{summary.label}{f' in {summary.env_id}' if comparison.several else ''}: {summary.counts}"
        for summaries in comparison.troubled.values()
        for summary in summaries
    ]
    if not each:
        return ""
    return (
        f"{FAILURES} Some runs failed and have no return; numbers and places are those of the others, and too good if "
        f"seeds fail that do badly. {'; '.join(each)}."
    )


def coverage(comparison: Comparison) -> str:
    """What the intervals of few runs are worth, if any setting has few."""
    numbers = sorted({len(summary.finished) for summary in comparison.summaries} & set(COVERAGE_OF_FEW))
    if not numbers:
        return ""
    shares = ", ".join(f"about {COVERAGE_OF_FEW[n] * 100:.0f} % with {n}" for n in numbers)
    return (
        "Intervals of few runs are too narrow: one that is called 95 % covers the true interquartile mean in "
        f"{shares} runs (simulations with normal scores; 94 to 95 % from 10 runs on)."
    )


def final_returns(records: Iterable[Record]) -> list[tuple[str, list[str]]]:
    """(the episodes that final returns are means of, whose), the study's own first.

    :return: whose: labels, with their environments if there are several kinds of episodes under one label
    """
    kinds: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        kinds.setdefault(_kind(record), []).append(record)
    ordered = sorted(kinds.items(), key=lambda item: (item[1][0].spec.origin is not None, -len(item[1])))
    several = Counter(label for found in kinds.values() for label in {record.spec.label for record in found})
    return [
        (template.format(_counted(found)), list(dict.fromkeys(_whose(r, several[r.spec.label] > 1) for r in found)))
        for (template, _), found in ordered
    ]


def _kind(record: Record) -> tuple[str, str]:
    """Sentence with room for the number of episodes; what else makes two kinds of it."""
    protocol = record.spec.protocol
    how = "deterministic" if protocol.deterministic else "stochastic"
    if record.spec.origin is not None:
        known = "the last evaluation, made elsewhere, of {} episodes"
        return (known if protocol.deterministic else "the last window of training, of {} sampled episodes"), ""
    if protocol.test_episodes:
        return f"a test of {{}} {how} episodes", str(protocol.test_episodes)
    return f"the last evaluation of {{}} {how} episodes", str(protocol.episodes)


def _counted(records: Sequence[Record]) -> str:
    protocols = [record.spec.protocol for record in records]
    numbers = sorted({protocol.test_episodes or protocol.episodes for protocol in protocols})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _whose(record: Record, with_environment: bool) -> str:
    return f"{record.spec.label} in {record.spec.environment.id}" if with_environment else record.spec.label


def origin_of_finals(records: Iterable[Record]) -> str:
    """``a test of 100 deterministic episodes``; whose, if there are other kinds besides."""
    (usual, _), *others = final_returns(records)
    return "; ".join([usual, *(f"of {', '.join(labels)}, {what}" for what, labels in others)])


def explanation(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(column, what it means) of the table of results."""
    return [
        (
            "Final return",
            "mean undiscounted return of each run, summed up over runs by the interquartile mean; in "
            f"{origin_of_finals(records)}.",
        ),
        (
            "Area under curve",
            "mean height of the learning curve from the first step on, in units of return, likewise; –: there was no "
            "evaluation before the first step.",
        ),
        ("95 % interval", f"percentile bootstrap over runs, {RESAMPLES} resamples."),
        ("Worst seed", "the lowest final return of any run."),
        (
            "steps/s",
            "environment steps per second of training, with learning, without evaluation, median; *wall time* of a run "
            "with evaluation, median; both measured with other runs beside it on one machine.",
        ),
    ]


def settings_rows(summaries: Iterable[Summary]) -> list[list[str]]:
    """Rows under :data:`SETTINGS_HEADER`."""
    rows = []
    for summary in summaries:
        spec = summary.records[0].spec
        environment = spec.environment
        others = {name: value for name, value in spec.arguments.items() if name != "device"}
        around = {"policy": spec.policy, "normalize": environment.normalize, "frame_stack": environment.frame_stack}
        changed = {**{name: value for name, value in around.items() if value is not None}, **others}
        text = ", ".join(f"{name}={as_text(value)}" for name, value in changed.items())
        copies = f"{environment.n_envs} ({environment.vec_env})"
        rows.append([summary.label, summary.env_id, f"{spec.total_steps:,}", copies, text or "defaults"])
    return rows


def provenance_rows(records: Sequence[Record]) -> list[list[str]]:
    """What the results come from: (what, which). Of runs that were made elsewhere nothing is known but their files."""
    own = [record for record in records if record.spec.origin is None]
    imported = Counter(record.spec.label for record in records if record.spec.origin is not None)
    named = ", ".join(f"{label} ({n} {'run' if n == 1 else 'runs'})" for label, n in imported.items())
    return [
        *(_own_provenance(own) if own else []),
        *([["imported, of which no more is known", named]] if named else []),
    ]


def _own_provenance(records: Sequence[Record]) -> list[list[str]]:
    specs = [record.spec for record in records]
    found = [record.provenance for record in records if record.provenance]
    versions: dict[str, set[str]] = {}
    for spec in specs:
        for package, version in spec.versions.items():
            versions.setdefault(package, set()).add(version)
    seeds = {spec.replicate: spec.seeds for spec in specs}
    return [
        ["versions", ", ".join(f"{package} {'/'.join(sorted(version))}" for package, version in versions.items())],
        ["Python", _each(found, "python")],
        ["commit", _each(found, "git")],
        ["machine", f"{_each(found, 'cpu')}, {_each(found, 'cpu_count')} cores, {_each(found, 'system')}"],
        ["torch threads", ", ".join(sorted({str(spec.threads) for spec in specs}))],
        ["evaluation", _protocols(records)],
        ["training seeds", ", ".join(f"{number}: {seed.train}" for number, seed in sorted(seeds.items()))],
        ["evaluation seeds", ", ".join(f"{number}: {seed.evaluation}" for number, seed in sorted(seeds.items()))],
        ["test seeds", ", ".join(f"{number}: {seed.test}" for number, seed in sorted(seeds.items()))],
    ]


def _each(found: Iterable[Any], name: str) -> str:
    return " / ".join(dict.fromkeys(str(each.get(name)) for each in found)) or "not recorded yet"


def _protocols(records: Sequence[Record]) -> str:
    protocols = dict.fromkeys(record.spec.protocol for record in records)
    return "; ".join(
        f"{p.episodes} {'deterministic' if p.deterministic else 'stochastic'} episodes every {p.every:,} steps, "
        f"then {p.test_episodes or 'no'} test episodes"
        for p in protocols
    )
