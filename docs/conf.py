"""Sphinx configuration: Markdown pages and the docstrings of the package."""

import re
from collections.abc import Iterator
from typing import Any

from sb3_pg_ext import __version__

project = "sb3_pg_ext"
author = "The sb3_pg_ext authors"
project_copyright = author
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["reference/report.md"]  # the same as report.html
highlight_language = "text"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"sb3_pg_ext {release}"
autodoc_typehints = "none"
autodoc_member_order = "bysource"


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_written)


def as_written(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Indented formulas of docstrings keep their lines, and the bars of |x| are bars."""
    lines[:] = list(_as_written(lines))


def _as_written(lines: list[str]) -> Iterator[str]:
    formula, before = False, ""  # the last line that was not blank
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        begins = indented and not formula and number > 0 and not lines[number - 1].strip()
        if begins and not before.startswith((" ", ":", "..", "*", "-", ">>>")) and not before.endswith("::"):
            yield from ("::", "")
            formula = True
        formula = formula and (indented or not line.strip())
        yield line if formula else _without_substitutions(line)
        before = line if line.strip() else before


def _without_substitutions(line: str) -> str:
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)
