"""Write the tables that are derived from the registry, the tuned settings or results: ``python docs/make_tables.py``.

``--check`` only compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sb3_pg_ext
from sb3_pg_ext.diagnostics.records import from_json
from sb3_pg_ext.experiments.gradient_report import markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- algorithms: written by `python docs/make_tables.py` -->\n"
GRADLAB = "<!-- gradlab: written by `python docs/make_tables.py` from gradlab/gradlab.json -->\n"
SETTINGS = "<!-- settings: written by `python docs/make_tables.py` from zoo_configs -->\n"
END = "<!-- end -->"
# The comments of an entry and its environment.
ENTRY = re.compile(r"((?:^#.*\n)+)([\w-]+):", re.MULTILINE)
TUNED = re.compile(r"On (\d+) fresh seeds: mean (\S+), worst (\S+);")
MEASURED = re.compile(r"[Mm]ean return of (\d+) test episodes: (.*?)\.?$", re.MULTILINE)
PROBABILITY = re.compile(r"probability of going right \(the best is 0\.586\): (.*?)\.?$", re.MULTILINE)
STEPS = re.compile(r"sb3-pg compare .* -n (\d+)")


def algorithms(page: Path) -> str:
    """One row per algorithm; ours first, each linked to its page."""
    rows = []
    for key, spec in sb3_pg_ext.available().items():
        package = spec.cls.__module__.split(".")[0]
        ours = package == "sb3_pg_ext"
        link = f"[`{key}`]({_relative(page, key)})" if ours else f"`{key}`"
        spaces = "all" if len(spec.action_spaces) == 4 else ", ".join(spec.action_spaces)
        rows.append(
            (not ours, f"| {link} | `{spec.cls.__name__}` | {spec.family.replace('_', ' ')} | {spaces} | {package} |")
        )
    head = ["| key | class | family | action spaces | from |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(row for _, row in sorted(rows))]) + "\n"


def _relative(page: Path, key: str) -> str:
    prefix = "docs/algorithms/" if page.parent == ROOT else "algorithms/"
    return f"{prefix}{key}.md"


def gradients(page: Path) -> str:
    """What `sb3-pg gradlab -f docs/gradlab` has found."""
    measurements, command = from_json((page.parent / "gradlab/gradlab.json").read_text())
    return f"Made by `{command}`:\n\n{markdown(measurements, every_size=False)}"


def settings(page: Path) -> str:
    """What the entries of ``zoo_configs`` reach, best first, in a table for each environment."""
    found: dict[str, list[tuple[float, str]]] = {}
    for file in sorted((ROOT / "zoo_configs").glob("*.yml")):
        for head, env_id in ENTRY.findall(file.read_text()):
            reached, steps = _reached(head), STEPS.search(head)
            cells = (f"`{file.stem}`", reached, f"{int(steps[1]):,}" if steps else "–", _origin(head))
            found.setdefault(env_id, []).append((_value(reached), f"| {' | '.join(cells)} |"))
    return "\n".join(_sections(found))


def _sections(found: dict[str, list[tuple[float, str]]]) -> Iterator[str]:
    for env_id, rows in found.items():
        yield f"## {env_id}\n"
        yield from ("| algorithm | mean return | steps | settings |", "|---|---|---|---|")
        yield from (row for _, row in sorted(rows, key=lambda row: -row[0]))
        yield ""


def _reached(head: str) -> str:
    if tuned := TUNED.search(head):
        return f"{tuned[2]} in the mean of {tuned[1]} seeds, {tuned[3]} with the worst"
    if measured := MEASURED.search(head):
        return f"{measured[2]}{'' if measured[1] == '100' else f' ({measured[1]} episodes)'}"
    if walked := PROBABILITY.search(head):
        return f"goes right with a probability of {walked[1]}; the best is 0.586"
    if "sb3-pg compare" in head:
        raise ValueError(f"there is a result that cannot be read:\n{head}")
    return "not measured"


def _value(reached: str) -> float:
    """What rows are ordered by: the first number."""
    number = re.match(r"-?[\d,]+(\.\d+)?", reached)
    return float(number[0].replace(",", "")) if number else float("-inf")


def _origin(head: str) -> str:
    if "# Tuned" in head:
        return "tuned"
    if "# Set by hand" in head:
        return "set by hand"
    return "starting point, kept after tuning" if "kept after tuning" in head else "starting point"


def updated(page: Path) -> str:
    text = page.read_text()
    for begin, content in ((BEGIN, algorithms), (GRADLAB, gradients), (SETTINGS, settings)):
        if begin in text:
            before, rest = text.split(begin)
            text = before + begin + content(page) + END + rest.split(END, 1)[1]
    return text


PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("index.md", "gradients.md", "settings.md"))]


def main() -> int:
    stale = [page for page in PAGES if updated(page) != page.read_text()]
    if "--check" in sys.argv:
        print("\n".join(f"{page} is stale: run python docs/make_tables.py" for page in stale))
        return 1 if stale else 0
    for page in stale:
        page.write_text(updated(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
