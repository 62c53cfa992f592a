"""The report of a study, from whatever is in the store so far: ``report.md``, and what papers and browsers want."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.chart import Chart, pictures, write
from sb3_pg_ext.experiments.comparison.advice import advise
from sb3_pg_ext.experiments.comparison.advice import explanation as explanation_of_advice
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.charts import charts
from sb3_pg_ext.experiments.comparison.facts import (
    SETTINGS_HEADER,
    coverage,
    explanation,
    failures,
    provenance_rows,
    settings_rows,
    state_line,
)
from sb3_pg_ext.experiments.comparison.latex import tables
from sb3_pg_ext.experiments.comparison.looks import crowded
from sb3_pg_ext.experiments.comparison.page import page
from sb3_pg_ext.experiments.results import Record, Reference
from sb3_pg_ext.experiments.statistics import Design
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.summary import HEADER, Summary, best_first, summarise
from sb3_pg_ext.experiments.values import SettingError, as_text

REPORT, FIGURE, PAGE, FIGURES, TABLES = "report.md", "learning_curves.png", "report.html", "figures", "tables"
_NO_MATPLOTLIB = 'The figures need matplotlib: pip install "sb3_pg_ext[report]", then run sb3-pg report on this folder.'
_NO_JINJA = 'The page needs jinja2: pip install "sb3_pg_ext[report]", then run sb3-pg report on this folder.'


@dataclass(frozen=True)
class Report:
    """What was written.

    :param summaries: of all settings
    :param files: files, and folders of files, in the order in which to read them
    :param notes: what the reader should know besides
    """

    summaries: Sequence[Summary]
    files: Sequence[Path]
    notes: Sequence[str]


def write_report(folder: Path, references: Mapping[str, Reference] | None = None) -> Report:
    """Write ``report.md``, ``report.html``, figures and LaTeX tables from the store in ``folder``, finished or not.

    :param references: environment id -> reference scores, instead of those that the store has for the environment
    :raises FileNotFoundError: there is no study in ``folder``
    :raises ValueError: it has no runs
    :raises SettingError: there is an environment in ``references`` that the study does not have
    """
    with Store(folder / FILE_NAME, read_only=True) as store:
        records, commands, n_hidden = store.records(), store.commands(), store.count_hidden()
        known = store.references()
    if not records:
        raise ValueError(f"the study in {folder} has no runs yet")
    comparison = Comparison(summarise(records), {**known, **(references or {})})
    _check_references(comparison, references or {})
    notes = (
        [f"{n_hidden} earlier runs with other settings, seeds or versions under the same labels are not shown."]
        if n_hidden
        else []
    )
    drawn = _draw(comparison, folder)
    notes = notes if drawn else [_NO_MATPLOTLIB, *notes]
    paged = _write_page(comparison, folder, commands, drawn, notes)
    notes = notes if paged else [*notes, _NO_JINJA]
    for name, text in tables(comparison).items():
        _write(folder / TABLES / f"{name}.tex", text)
    _write(folder / REPORT, report_text(comparison, commands, notes, with_figure=bool(drawn)))
    files = ((PAGE, paged), (REPORT, True), (FIGURE, drawn), (FIGURES, drawn), (TABLES, True))
    return Report(comparison.summaries, [folder / name for name, written in files if written], notes)


def _check_references(comparison: Comparison, references: Mapping[str, Reference]) -> None:
    unknown = [env_id for env_id in references if env_id not in comparison.env_ids]
    if unknown:
        raise SettingError(
            f"there are reference scores for {', '.join(unknown)}, but no runs in it; there are runs in "
            f"{', '.join(comparison.env_ids)}"
        )


def _draw(comparison: Comparison, folder: Path) -> list[dict[str, Any]]:
    """Write the figures; returns what the page wants of them, which is nothing without matplotlib."""
    found = charts(comparison)
    in_legend = () if crowded(comparison) else comparison.labels
    try:
        for chart in found:
            write(chart, *_files(chart, folder), labels=in_legend)
        return [pictures(chart) for chart in found]
    except ModuleNotFoundError:
        return []


def _write_page(
    comparison: Comparison, folder: Path, commands: Sequence[str], drawn: Sequence[Any], notes: Sequence[str]
) -> bool:
    """Write the page; ``False`` if it cannot be made without jinja2."""
    try:
        text = page(comparison, folder, commands, drawn, notes)
    except ModuleNotFoundError:
        return False
    _write(folder / PAGE, text)
    return True


def _files(chart: Chart, folder: Path) -> list[Path]:
    files = [folder / FIGURES / f"{chart.name}.{ending}" for ending in ("png", "pdf")]
    return [folder / FIGURE, files[1]] if files[0].name == FIGURE else files


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report_text(comparison: Comparison, commands: Sequence[str], notes: Sequence[str], with_figure: bool) -> str:
    """The Markdown of a report."""
    summaries, records, env_ids = comparison.summaries, comparison.records, comparison.env_ids
    parts = [
        f"# Comparison in {', '.join(env_ids)}",
        state_line(records),
        *notes,
        "## Results",
        *(part for env_id in env_ids for part in _results_of(env_id, summaries)),
        *filter(None, [failures(comparison), _explanation(records), coverage(comparison)]),
        *(["## Learning curves", f"![Learning curves]({FIGURE})"] if with_figure else []),
        "## Is this settled?",
        *(f"**{env_id}**: {advise(comparison, env_id).sentence()}" for env_id in env_ids),
        explanation_of_advice(Design()),
        "## Settings",
        _settings_table(summaries),
        _all_settings(summaries),
        *_troubles(records),
        "## How to repeat it",
        *([f"```sh\n{chr(10).join(commands)}\n```"] if commands else []),
        markdown_table(["", ""], provenance_rows(records)),
    ]
    return "\n\n".join(parts) + "\n"


def _results_of(env_id: str, summaries: Sequence[Summary]) -> list[str]:
    rows = [summary.row() for summary in best_first(s for s in summaries if s.env_id == env_id)]
    return [f"### {env_id}", markdown_table(HEADER, rows, right_from=1)]


def _explanation(records: Sequence[Record]) -> str:
    return " ".join(f"*{what}*: {text}" for what, text in explanation(records))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right_from: int = 10**9) -> str:
    """A Markdown table whose columns from number ``right_from`` on are set to the right."""
    rules = ["---:" if column >= right_from else "---" for column in range(len(header))]
    lines = [header, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _settings_table(summaries: Sequence[Summary]) -> str:
    rows = [[*rest, text if text == "defaults" else f"`{text}`"] for *rest, text in settings_rows(summaries)]
    return markdown_table(SETTINGS_HEADER, rows)


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
