r"""Tables for papers: LaTeX that needs ``\usepackage{array, booktabs, graphicx}`` and nothing else.

Long labels are broken after their commas, and a table that is wider than the text is scaled to it; one that is longer
than a page is cut.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import SETTINGS_HEADER, failures, origin_of_finals, settings_rows
from sb3_pg_ext.experiments.statistics import AGGREGATES, Pair
from sb3_pg_ext.experiments.summary import (
    Summary,
    best_of,
    estimate_text,
    number,
    p_value_text,
    probability_text,
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # \textquotedbl is not in every font encoding
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
    "†": r"\dag{}",
    **{"≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "∞": r"$\infty$", "→": r"$\to$", "−": "$-$"},
}
_CAPITALS = "ΓΔΘΛΞΠΣΥΦΨΩ"  # those that Latin has too have no command
_LAST_LATIN = "ſ"
_LONG = 22  # characters of a label that is not broken
_ROOM = 16  # characters on a line of one that is
_BREAKS = {**dict.fromkeys(",:/", r"\allowbreak{}"), **dict.fromkeys("=_", r"\penalty100{}"), " ": " "}
_LINES = 36  # of a table on a page
_LABELS, _WIDE = r">{\raggedright\hangindent=1em}p{%s\linewidth}", r">{\raggedright\arraybackslash}p{0.42\linewidth}"
_PREAMBLE = "% \\usepackage{array, booktabs, graphicx}"
_HEAD = r"""\begin{table}
\centering
\setlength{\abovecaptionskip}{0pt}
\setlength{\belowcaptionskip}{6pt}
\setlength{\tabcolsep}{4pt}
\caption{%s}"""
_BOX = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def escape(text: str) -> str:
    """``text`` as LaTeX sets it: nothing in it is a command or a ligature.

    What pdflatex has no character for is named by its code point.
    """
    set_ = "".join(map(_character, " ".join(text.split())))
    return re.sub(r"([-`'!?,])(?=[-`'])", r"\1{}", set_)


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3 and character not in "οςϐ":
        return f"$\\{name.split()[-1].lower().replace('lamda', 'lambda')}$"
    if character in _CAPITALS:
        return f"$\\{name.split()[-1].capitalize().replace('Lamda', 'Lambda')}$"
    known = character <= _LAST_LATIN and character.isprintable()
    return character if known else f"[U+{ord(character):04X}]"


def _breakable(text: str) -> str:
    """Escaped; if it is long, it is broken between its parts, and within one only if that alone is too long."""
    if len(text) <= _LONG:
        return escape(text)
    parts = re.split(r"(?<=[,:/=_ ])", text)
    return "".join(rf"\mbox{{{escape(part)}}}{_BREAKS.get(part[-1], '')}" for part in parts if part)


def _number(text: str) -> str:
    """Escaped, with minus signs instead of hyphens before numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escape(text))


def tables(comparison: Comparison) -> dict[str, str]:
    """Name of each file, without its ending -> the table."""
    found = {"results": _results(comparison), "pairs": _pairs(comparison), "settings": _settings(comparison)}
    return {**found, "aggregates": _aggregates(comparison)} if comparison.aggregates else found


def _column(labels: Iterable[str], width: float) -> str:
    """The column of some labels: as wide as the longest, or of several lines."""
    return _LABELS % width if max(map(len, labels), default=0) > _LONG else "l"


def _lines(*texts: str, room: int = _ROOM) -> int:
    """How many lines a row takes, about, whose longest cell is the longest of ``texts``."""
    return max(math.ceil(len(text) / room) if len(text) > _LONG else 1 for text in texts)


Rows = Sequence[tuple[int, Sequence[str]]]


def _table(header: Sequence[str], blocks: Mapping[str, Rows], columns: str, caption: str) -> str:
    """Rows in blocks, each under its own line unless it is called ``""``; as many tables as they take pages.

    :param header: finished cells
    :param blocks: name -> rows: how many lines each takes, and its finished cells
    """
    tabular = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(header), r"\midrule"]
    parts = [_PREAMBLE]
    for page, lines in enumerate(_pages(blocks, len(header))):
        head = _HEAD % (f"{caption} (continued)" if page else caption)
        parts += [head, _BOX, *tabular, *lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join([*parts, ""])


def _pages(blocks: Mapping[str, Rows], width: int) -> Iterator[list[str]]:
    lines: list[str] = []
    used = 0
    for name, rows in blocks.items():
        title = [rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{escape(name)}}}}} \\"] if name else []
        for place, (height, row) in enumerate(rows):
            full = used + height > _LINES and used > 0
            if full:
                yield lines
                lines, used = [], 0
            if full or not place:
                lines += [*([r"\addlinespace"] if lines else []), *title]
                used += len(title)
            lines.append(_row(row))
            used += height
    yield lines


def _row(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _results(comparison: Comparison) -> str:
    blocks = {env_id: _results_of(comparison.within(env_id)) for env_id in comparison.env_ids}
    caption = (
        r"Interquartile means over seeds with 95\,\% bootstrap intervals. Final return: mean of "
        rf"{_number(origin_of_finals(comparison.records))}. Runs: finished/all. Bold: the highest final "
        rf"return.{_failures(comparison)}"
    )
    header = ("algorithm", "final return", "area under curve", "worst seed", "runs")
    return _table(header, blocks, f"{_column(comparison.labels, 0.3)}rrrr", caption)


def _results_of(summaries: Sequence[Summary]) -> Rows:
    best = best_of(summaries)
    return [(_lines(summary.name), _result(summary, summary in best)) for summary in summaries]


def _result(summary: Summary, best: bool) -> list[str]:
    final = _number(estimate_text(summary.final))
    finals = [record.final_return for record in summary.finished]
    return [
        _breakable(summary.name),
        rf"\textbf{{{final}}}" if best else final,
        _number(estimate_text(summary.area)),
        _number(number(min(finals))) if finals else "--",
        f"{len(finals)}/{len(summary.records)}{f', {len(summary.failed)} failed' if summary.failed else ''}",
    ]


def _failures(comparison: Comparison) -> str:
    """What is added to a caption where some runs have failed."""
    return f" {escape(failures(comparison))}" if comparison.troubled else ""


def _pairs(comparison: Comparison) -> str:
    blocks: dict[str, Rows] = {}
    for env_id, pairs in comparison.pairs.items():
        names = {summary.label: summary.name for summary in comparison.within(env_id)}
        if pairs:
            blocks[env_id] = [_pair(pair, names[pair.first], names[pair.second]) for pair in pairs]
    caption = (
        r"Probability that a run of A is better than one of B, with its 95\,\% bootstrap interval; exact two-sided "
        r"p-value of the Mann--Whitney test, and the same with Holm's correction over the pairs of the "
        f"environment.{_failures(comparison)}"
    )
    column = _column(comparison.labels, 0.28)
    return _table(("A", "B", "$P(A > B)$", "$p$", "corrected"), blocks, f"{column}{column}rrr", caption)


def _pair(pair: Pair, first: str, second: str) -> tuple[int, list[str]]:
    p_values = (p_value_text(value).replace("<", "$<$") for value in (pair.p_value, pair.corrected))
    cells = [_breakable(first), _breakable(second), _number(probability_text(pair.improvement)), *p_values]
    return _lines(first, second), cells


def _aggregates(comparison: Comparison) -> str:
    rows = [
        (
            _lines(label),
            [_breakable(comparison.name(label)), *(_number(estimate_text(row[name])) for name in AGGREGATES)],
        )
        for label, row in comparison.aggregates.items()
    ]
    over = f"Normalised final returns over {len(comparison.env_ids)} environments"
    caption = rf"{over}, with 95\,\% stratified bootstrap intervals.{_failures(comparison)}"
    columns = _column(comparison.aggregates, 0.25) + "r" * len(AGGREGATES)
    return _table(("algorithm", *AGGREGATES), {"": rows}, columns, caption)


def _settings(comparison: Comparison) -> str:
    alike: dict[tuple[str, ...], list[str]] = {}
    for label, env_id, *rest in settings_rows(comparison.summaries):
        alike.setdefault((label, *rest), []).append(env_id)
    everywhere = len(comparison.env_ids) if comparison.several else math.inf
    places = ["all" if len(env_ids) == everywhere else ", ".join(env_ids) for env_ids in alike.values()]
    rows = [
        (
            max(_lines(label, where), _lines(given, room=30)),
            [_breakable(label), _breakable(where), steps, escape(copies), rf"\texttt{{{_breakable(given)}}}"],
        )
        for (label, steps, copies, given), where in zip(alike, places, strict=True)
    ]
    columns = f"{_column(comparison.labels, 0.25)}{_column(places, 0.25)}rl{_WIDE}"
    return _table(SETTINGS_HEADER, {"": rows}, columns, "Settings that differ from the defaults.")
