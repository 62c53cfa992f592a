"""Pages that need nothing else: no network, no script, no file beside them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def render(template: str, **content: Any) -> str:
    """The page that ``template`` makes of ``content``, which it escapes.

    :param template: path of a file in this package; :file:`page.css` and :file:`parts.html.j2` are shared by all
    :raises ModuleNotFoundError: jinja2 is not installed
    """
    import jinja2

    folder = files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**content)
