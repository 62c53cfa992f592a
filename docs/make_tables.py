"""Write the tables that are derived from the registry: ``python docs/make_tables.py`` (``--check``: only compare)."""

from __future__ import annotations

import sys
from pathlib import Path

import sb3_pg_ext

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- algorithms: written by `python docs/make_tables.py` -->\n"
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


def updated(page: Path) -> str:
    text = page.read_text()
    before, rest = text.split(BEGIN)
    return before + BEGIN + algorithms(page) + END + rest.split(END, 1)[1]


PAGES = [ROOT / "README.md", ROOT / "docs/index.md"]


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
