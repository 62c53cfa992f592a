"""The text of a settings file in the zoo's format: one entry is put in, replaced or taken out, and the rest stays.

An entry is its top-level key, the comments right above it, and all lines down to the last of its settings, whatever is
between them. A comment with which the file begins is the file's own; one that stands free belongs to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.values import SettingError

_COMMENTS_AT_THE_END = re.compile(r"(?:^#.*\n)+\Z", re.MULTILINE)
_OUTSIDE = re.compile(r"(?:#.*|\s*)")  # a line that is no part of any entry


def read_text(path: Path) -> str:
    """The text with its own ends of lines; that of a file that does not exist is empty."""
    return path.read_bytes().decode("utf-8") if path.is_file() else ""


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors begin with the file that they are about."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None


def entry_names(text: str) -> list[str]:
    """Names of all entries, in their order.

    :raises SettingError: the text is not a table in YAML
    """
    return [name for name, _ in _keys(text)]


def with_entry(text: str, name: str, entry: str) -> str:
    """``text`` with ``entry`` in the place of the one called ``name``, or at the end if there is none.

    Where other entries are built on the old one (``&anchor``), it stays below the new one, by the name of its anchor.

    :param entry: its lines, the comments above it included
    :raises SettingError: the text is not a table in YAML, or the other entries would not stay what they are
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    entry = entry.strip("\n").replace("\n", newline) + newline
    before, old, after = _split(text, name)
    if old:
        base = _base(name, old, after)
        return _checked(text, before + entry + (newline + base if base else "") + after, name)
    ended = text if text.endswith("\n") or not text else text + newline
    gap = newline if ended.strip() and not ended.endswith(2 * newline) else ""
    return _checked(text, ended + gap + entry, name)


def without_entry(text: str, name: str) -> str:
    """``text`` without the entry called ``name`` and the blank lines after it; the base of others is renamed instead.

    :raises SettingError: as :func:`with_entry`
    """
    before, old, after = _split(text, name)
    base = _base(name, old, after)
    return _checked(text, before + (base + after if base else after.lstrip("\r\n")), name)


def _keys(text: str) -> list[tuple[str, int]]:
    """Name and place of each top-level key."""
    import yaml

    try:
        root = yaml.compose(text)
    except yaml.YAMLError as error:
        raise SettingError(f"the file is not plain YAML: {error}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise SettingError("the file is not a table of entries, one below the other")
    return [(key.value, key.start_mark.index) for key, _ in root.value]


def _split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before the entry, the entry (empty if there is none), and what stands after it."""
    keys = _keys(text)
    found = [number for number, (key, _) in enumerate(keys) if key == name]
    if not found:
        return text, "", ""
    key = keys[found[-1]][1]
    comments = _COMMENTS_AT_THE_END.search(text, 0, key)
    start = comments.start() if comments and comments.start() else key
    following = keys[found[-1] + 1][1] if found[-1] + 1 < len(keys) else len(text)
    lines = re.split(r"(?<=\n)", text[key:following])
    while _OUTSIDE.fullmatch(lines[-1].rstrip("\r\n")):
        lines.pop()
    end = key + sum(map(len, lines))
    return text[:start], text[start:end], text[end:]


def _base(name: str, entry: str, after: str) -> str:
    """The entry under the name of the anchor by which later ones refer to it; empty if none does."""
    lines = re.split(r"(?<=\n)", entry)
    key = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    body = "".join(lines[key:])
    used = set(re.findall(r"\*([\w-]+)", after))
    anchor = next((anchor for anchor in re.findall(r":\s+&([\w-]+)", body) if anchor in used), None)
    return "" if anchor is None else re.sub(rf"^(['\"]?){re.escape(name)}\1", anchor, body, count=1)


def _checked(old: str, new: str, name: str) -> str:
    """``new``, whose other entries are those of ``old``.

    :raises SettingError: they are not
    """
    before, after = _entries(old), _entries(new)
    others = before.keys() - {name}
    if any(after.get(other) != before[other] for other in others):
        raise SettingError(f"{name!r} cannot be written without a change of other entries; do it by hand")
    return new


def _entries(text: str) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingError(f"the file is not plain YAML: {error}") from None
