"""Sentences and tables that the Markdown report and the page have in common."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import RESAMPLES
from sb3_pg_ext.experiments.summary import Summary
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
    """The sentence that names the algorithms that are not shown, if there are any; all of them have no other reason."""
    names = ", ".join(label for label in comparison.labels if label not in shown)
    where = " in some environment" if comparison.several else ""
    return f"Left out, for want of a finished run{where}: {names}." if names else ""


def explanation(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(column, what it means) of the table of results."""
    protocol = records[0].spec.protocol
    how = "deterministic" if protocol.deterministic else "stochastic"
    final = (
        f"a test of {protocol.test_episodes}"
        if protocol.test_episodes
        else f"the last evaluation of {protocol.episodes}"
    )
    return [
        (
            "Final return",
            f"mean undiscounted return of each run in {final} {how} episodes, summed up over runs by the interquartile "
            "mean.",
        ),
        ("Area under curve", "mean height of the learning curve, in units of return, likewise."),
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
    """What the results come from: (what, which)."""
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
