"""Sphinx configuration: Markdown pages and the docstrings of the package."""

from sb3_pg_ext import __version__

project = "sb3_pg_ext"
author = "The sb3_pg_ext authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["plugin_example", "gradlab"]
html_theme = "furo"
html_title = f"sb3_pg_ext {release}"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.xref_missing"]
