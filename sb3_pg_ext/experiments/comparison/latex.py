r"""Tables for papers: LaTeX that needs ``\usepackage{booktabs}`` and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import SETTINGS_HEADER, settings_rows
from sb3_pg_ext.experiments.statistics import AGGREGATES
from sb3_pg_ext.experiments.summary import estimate_text, number, probability_text

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
}
_RESULTS_HEADER = ("algorithm", "final return", "area under curve", "worst seed", "runs")


def escape(text: str) -> str:
    """``text`` as LaTeX sets it; nothing in it is a command."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _number(text: str) -> str:
    """Escaped, with minus signs instead of hyphens before numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escape(text))


def tables(comparison: Comparison) -> dict[str, str]:
    """Name of each file, without its ending -> the table."""
    found = {"results": _results(comparison), "pairs": _pairs(comparison), "settings": _settings(comparison)}
    return {**found, "aggregates": _aggregates(comparison)} if comparison.aggregates else found


def _table(header: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]], columns: str, caption: str) -> str:
    """Rows in blocks, each under its own line unless it is called ``""``.

    :param blocks: name -> rows of finished cells
    """
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(map(escape, header)), r"\midrule"]
    for index, (name, rows) in enumerate(blocks.items()):
        lines += [r"\addlinespace"] if index else []
        lines += [rf"\multicolumn{{{len(header)}}}{{l}}{{\textbf{{{escape(name)}}}}} \\"] if name else []
        lines += map(_row, rows)
    head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(cells: object) -> str:
    return rf"{' & '.join(cells)} \\"  # type: ignore[arg-type]


def _results(comparison: Comparison) -> str:
    blocks = {}
    for env_id in comparison.env_ids:
        rows = []
        for place, summary in enumerate(comparison.within(env_id)):
            finals = comparison.finals(summary.label, env_id)
            final = _number(estimate_text(summary.final))
            rows.append(
                [
                    escape(summary.label),
                    rf"\textbf{{{final}}}" if place == 0 and len(finals) else final,
                    _number(estimate_text(summary.area)),
                    _number(number(finals.min())) if len(finals) else "--",
                    f"{len(finals)}/{len(summary.records)}",
                ]
            )
        blocks[env_id] = rows
    caption = (
        r"Interquartile means over seeds with 95\,\% bootstrap intervals. Final return: mean of the test episodes "
        r"after training. Runs: finished/all. Bold: the highest final return."
    )
    return _table(_RESULTS_HEADER, blocks, "lrrrr", caption)


def _pairs(comparison: Comparison) -> str:
    blocks = {
        env_id: [
            [
                escape(pair.first),
                escape(pair.second),
                _number(probability_text(pair.improvement)),
                f"{pair.p_value:.3f}",
                f"{pair.corrected:.3f}",
            ]
            for pair in pairs
        ]
        for env_id, pairs in comparison.pairs.items()
        if pairs
    }
    caption = (
        r"Probability that a run of A is better than one of B, with its 95\,\% bootstrap interval; exact two-sided "
        r"p-value of the Mann--Whitney test, and the same with Holm's correction over the pairs of the environment."
    )
    return _table(("A", "B", "P(A > B)", "p", "corrected"), blocks, "llrrr", caption)


def _aggregates(comparison: Comparison) -> str:
    rows = [
        [escape(label), *(_number(estimate_text(row[name])) for name in AGGREGATES)]
        for label, row in comparison.aggregates.items()
    ]
    over = f"Normalised final returns over {len(comparison.env_ids)} environments"
    caption = rf"{over}, with 95\,\% stratified bootstrap intervals."
    return _table(("algorithm", *AGGREGATES), {"": rows}, "l" + "r" * len(AGGREGATES), caption)


def _settings(comparison: Comparison) -> str:
    rows = [
        [escape(label), escape(env_id), steps, escape(copies), rf"\texttt{{{escape(given)}}}"]
        for label, env_id, steps, copies, given in settings_rows(comparison.summaries)
    ]
    return _table(SETTINGS_HEADER, {"": rows}, r"llrlp{0.45\linewidth}", "Settings that differ from the defaults.")
