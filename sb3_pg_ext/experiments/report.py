"""The report of a study: ``report.md`` with its table and figure, from whatever is in the store so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.statistics import RESAMPLES
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.summary import HEADER, Summary, best_first, summarise
from sb3_pg_ext.experiments.values import as_text

REPORT, FIGURE = "report.md", "learning_curves.png"
_NO_MATPLOTLIB = 'The figure needs matplotlib: pip install "sb3_pg_ext[report]", then run sb3-pg report on this folder.'


@dataclass(frozen=True)
class Report:
    """What was written.

    :param summaries: of all settings
    :param files: in the order in which to read them
    :param notes: what the reader should know besides
    """

    summaries: Sequence[Summary]
    files: Sequence[Path]
    notes: Sequence[str]


def write_report(folder: Path) -> Report:
    """Write ``report.md`` and the figure from the store in ``folder``, finished or not.

    :raises FileNotFoundError: there is no study in ``folder``
    :raises ValueError: it has no runs
    """
    with Store(folder / FILE_NAME) as store:
        records, commands, n_hidden = store.records(), store.commands(), store.count_hidden()
    if not records:
        raise ValueError(f"the study in {folder} has no runs yet")
    summaries = summarise(records)
    figure = _draw(summaries, folder / FIGURE)
    notes = [] if figure else [_NO_MATPLOTLIB]
    if n_hidden:
        notes.append(f"{n_hidden} earlier runs with other settings or versions under the same labels are not shown.")
    with atomic_write(folder / REPORT) as temporary:
        temporary.write_text(report_text(summaries, commands, notes, with_figure=figure), encoding="utf-8")
    return Report(summaries, [folder / REPORT, *([folder / FIGURE] if figure else [])], notes)


def _draw(summaries: Sequence[Summary], path: Path) -> bool:
    from sb3_pg_ext.experiments.figure import draw_learning_curves

    try:
        draw_learning_curves(summaries, path)
    except ModuleNotFoundError:
        return False
    return True


def report_text(summaries: Sequence[Summary], commands: Sequence[str], notes: Sequence[str], with_figure: bool) -> str:
    """The Markdown of a report."""
    records = [record for summary in summaries for record in summary.records]
    env_ids = list(dict.fromkeys(summary.env_id for summary in summaries))
    parts = [
        f"# Comparison in {', '.join(env_ids)}",
        state_line(records),
        *notes,
        "## Results",
        *(part for env_id in env_ids for part in _results_of(env_id, summaries)),
        _explanation(records),
        *(["## Learning curves", f"![Learning curves]({FIGURE})"] if with_figure else []),
        "## Settings",
        _settings_table(summaries),
        _all_settings(summaries),
        *_troubles(records),
        "## How to repeat it",
        *([f"```sh\n{chr(10).join(commands)}\n```"] if commands else []),
        _provenance(records),
    ]
    return "\n\n".join(parts) + "\n"


def state_line(records: Sequence[Record]) -> str:
    """How much of the study there is."""
    finished = sum(record.status == "finished" for record in records)
    failed = sum(record.status == "failed" for record in records)
    missing = len(records) - finished - failed
    if finished == len(records):
        return f"All {finished} runs are finished."
    absent = [f"{failed} failed"] if failed else []
    absent += [f"{missing} missing, so the numbers are provisional"] if missing else []
    return f"**{finished} of {len(records)} runs are finished; {'; '.join(absent)}.**"


def _results_of(env_id: str, summaries: Sequence[Summary]) -> list[str]:
    rows = [summary.row() for summary in best_first(s for s in summaries if s.env_id == env_id)]
    return [f"### {env_id}", markdown_table(HEADER, rows, right_from=1)]


def _explanation(records: Sequence[Record]) -> str:
    protocol = records[0].spec.protocol
    how = "deterministic" if protocol.deterministic else "stochastic"
    final = (
        f"a test of {protocol.test_episodes}"
        if protocol.test_episodes
        else f"the last evaluation of {protocol.episodes}"
    )
    return (
        f"*Final return*: mean undiscounted return of each run in {final} {how} episodes, summed up over runs by the "
        "interquartile mean. *Area under curve*: mean height of the learning curve, in units of return, likewise. "
        f"*95 % interval*: percentile bootstrap over runs, {RESAMPLES} resamples. *Worst seed*: the lowest final "
        "return of any run. *steps/s*: environment steps per second of training, with learning, without evaluation, "
        "median; *wall time* of a run with evaluation, median; both measured with other runs beside it on one machine."
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right_from: int = 10**9) -> str:
    """A Markdown table whose columns from number ``right_from`` on are set to the right."""
    rules = ["---:" if column >= right_from else "---" for column in range(len(header))]
    lines = [header, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _settings_table(summaries: Sequence[Summary]) -> str:
    rows = []
    for summary in summaries:
        spec = summary.records[0].spec
        environment = spec.environment
        others = {name: value for name, value in spec.arguments.items() if name != "device"}
        around = {"policy": spec.policy, "normalize": environment.normalize, "frame_stack": environment.frame_stack}
        changed = {**{name: value for name, value in around.items() if value is not None}, **others}
        text = ", ".join(f"{name}={as_text(value)}" for name, value in changed.items())
        rows.append(
            [
                f"{summary.label}",
                summary.env_id,
                f"{spec.total_steps:,}",
                f"{environment.n_envs} ({environment.vec_env})",
                f"`{text}`" if text else "defaults",
            ]
        )
    return markdown_table(["algorithm", "environment", "steps", "copies", "settings that were given"], rows)


def _all_settings(summaries: Sequence[Summary]) -> str:
    blocks = []
    for summary in summaries:
        settings = summary.records[0].spec.hyperparameters
        text = "\n".join(f"{name}: {as_text(value)}" for name, value in settings.items())
        blocks.append(f"**{summary.label} · {summary.env_id}**\n\n```\n{text}\n```")
    return "\n\n".join(["<details><summary>All settings, defaults included</summary>", *blocks, "</details>"])


def _troubles(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record.status == "failed"]
    missing = [record for record in records if record.status in ("pending", "running")]
    parts = ["## Failed and missing runs"] if failed or missing else []
    for record in failed:
        error = (record.error or "no reason is known").strip()
        parts.append(f"**{record.spec.name}** failed: {error.splitlines()[-1]}")
        parts.append(f"<details><summary>traceback</summary>\n\n```\n{error}\n```\n\n</details>")
    if missing:
        rows = [
            [record.spec.name, record.status, f"{record.step:,} of {record.spec.total_steps:,}"] for record in missing
        ]
        parts.append(markdown_table(["run", "state", "steps"], rows))
    return parts


def _provenance(records: Sequence[Record]) -> str:
    specs = [record.spec for record in records]
    found = [record.provenance for record in records if record.provenance]
    versions: dict[str, set[str]] = {}
    for spec in specs:
        for package, version in spec.versions.items():
            versions.setdefault(package, set()).add(version)
    seeds = {spec.replicate: spec.seeds for spec in specs}
    rows = [
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
    return markdown_table(["", ""], rows)


def _each(found: Iterable[Any], name: str) -> str:
    return " / ".join(dict.fromkeys(str(each.get(name)) for each in found)) or "not recorded yet"


def _protocols(records: Sequence[Record]) -> str:
    protocols = dict.fromkeys(record.spec.protocol for record in records)
    return "; ".join(
        f"{p.episodes} {'deterministic' if p.deterministic else 'stochastic'} episodes every {p.every:,} steps, "
        f"then {p.test_episodes or 'no'} test episodes"
        for p in protocols
    )
