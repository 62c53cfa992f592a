"""Write the tables that are derived from the registry or from results: ``python docs/make_tables.py``.

``--check`` only compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sb3_pg_ext
from sb3_pg_ext.diagnostics.records import from_json
from sb3_pg_ext.experiments.gradient_report import markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- algorithms: written by `python docs/make_tables.py` -->\n"
GRADLAB = "<!-- gradlab: written by `python docs/make_tables.py` from gradlab/gradlab.json -->\n"
END = "<!-- end -->"


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


def updated(page: Path) -> str:
    text = page.read_text()
    for begin, content in ((BEGIN, algorithms), (GRADLAB, gradients)):
        if begin in text:
            before, rest = text.split(begin)
            text = before + begin + content(page) + END + rest.split(END, 1)[1]
    return text


PAGES = [ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/gradients.md"]


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
