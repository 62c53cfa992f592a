"""Plain YAML in which every part knows its line, for errors that say where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sb3_pg_ext.experiments.values import SettingError, read_value, suggestion
from sb3_pg_ext.registry import UnknownAlgorithmError

_MERGE = "tag:yaml.org,2002:merge"
_MAX_DEPTH = 20  # an alias may stand for what it is part of


@dataclass(frozen=True)
class Part:
    """A value in a file.

    :param node: as parsed; nothing is built of it that is not plain data
    :param file: name of the file
    :param line: of the key or the item that it belongs to, from 1
    :param path: such as ``environments[1].kwargs``; empty for the whole file
    """

    node: yaml.Node
    file: str
    line: int
    path: str = ""

    def error(self, what: str) -> SettingError:
        """The error that says ``what`` and where."""
        return SettingError(f"{self.file}, line {self.line}{self.path and ', ' + self.path}: {what}")

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Errors of the block are those of this part."""
        try:
            yield
        except (ValueError, UnknownAlgorithmError) as error:
            raise self.error(str(error)) from error

    # --- parts of it

    def table(self, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Part]:
        """Key -> part.

        :raises SettingError: it is no table, a key is not ``known``, or a ``required`` one is missing
        """
        parts = self.entries()
        for name, part in parts.items():
            if name not in known:
                raise part.error(f"there is no such key here. {suggestion(name, known)} Known: {', '.join(known)}")
        for name in required:
            if name not in parts:
                raise self.error(f"the key {name!r} is missing")
        return parts

    def entries(self, depth: int = 0) -> dict[str, Part]:
        """Key -> part, whatever the keys; a merged table (``<<``) gives what the table itself does not.

        :raises SettingError: it is no table, or a key is given twice or is not text
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"expected a table, key: value, but it is {self._kind()}")
        if depth > _MAX_DEPTH:
            raise self.error("the parts of the file go round in a circle")
        own: dict[str, Part] = {}
        merged: dict[str, Part] = {}
        for key, value in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            part = Part(value, self.file, key.start_mark.line + 1, f"{self.path}.{name}".lstrip("."))
            if key.tag == _MERGE:
                for table in part.items() if isinstance(value, yaml.SequenceNode) else [part]:
                    merged = {**table.entries(depth + 1), **merged}
            elif key.tag != "tag:yaml.org,2002:str":
                raise part.error(f"the key {name!r} is not text")
            elif name in own:
                raise part.error(f"{name!r} is given twice, first in line {own[name].line}")
            else:
                own[name] = part
        return {**merged, **own}

    def items(self) -> list[Part]:
        """The parts of a list.

        :raises SettingError: it is no list, or an empty one
        """
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.error(f"expected a list with at least one entry, but it is {self._kind()}")
        return [
            Part(node, self.file, node.start_mark.line + 1, f"{self.path}[{number}]")
            for number, node in enumerate(self.node.value)
        ]

    @property
    def is_table(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def _kind(self) -> str:
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value) if self.node.value else "empty"
        return f"{'a table' if self.is_table else 'a list'}{'' if self.node.value else ' without entries'}"

    # --- its value

    def plain(self, depth: int = 0) -> Any:
        """Plain data; text is read as on the command line, so that ``3e-4`` is a number and ``nn.ReLU`` a known name.

        :raises SettingError: it is no plain data
        """
        if depth > _MAX_DEPTH:
            raise self.error("the parts of the file go round in a circle")
        if self.is_table:
            return {name: part.plain(depth + 1) for name, part in self.entries(depth).items()}
        if self.is_list:
            return [part.plain(depth + 1) for part in self.items()] if self.node.value else []
        value = self._scalar()
        with self.blamed():
            return read_value(value) if isinstance(value, str) else value

    def _scalar(self) -> Any:
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error(f"expected a single value, but it is {self._kind()}")
        try:
            value = yaml.constructor.SafeConstructor().construct_object(self.node)
        except yaml.constructor.ConstructorError as error:
            raise self.error(f"{error.problem}; only plain data is read") from None
        except ValueError as error:  # a day such as 2026-13-45
            raise self.error(f"{self.node.value!r}: {error}") from None
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise self.error(f"{self.node.value!r} is read as a {type(value).__name__}; text needs quotes")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"{self.node.value}: only finite numbers are read")
        return value

    def text(self) -> str:
        """Text that is not empty."""
        value = self._scalar()
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"expected text, but it is {self._kind()}")
        return value

    def flag(self) -> bool:
        """True or false."""
        value = self._scalar()
        if not isinstance(value, bool):
            raise self.error(f"expected true or false, but it is {self._kind()}")
        return value

    def number(self) -> float:
        """A finite number, also as ``1e6``, which YAML alone takes for text."""
        value = self.plain()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"expected a number, but it is {self._kind()}")
        return value

    def whole(self, least: int, most: int | None = None) -> int:
        """A whole number that is at least ``least``, and ``most`` at most, also as ``1e6``."""
        value = self.number()
        if value != math.floor(value) or value < least:
            raise self.error(f"expected a whole number, at least {least}, but it is {self._kind()}")
        if most is not None and value > most:
            raise self.error(f"{self._kind()} is too much: at most {most:,}")
        return int(value)


def read_yaml(path: Path) -> Part:
    """The whole of a file.

    :raises FileNotFoundError: there is none
    :raises SettingError: it is empty or no YAML
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not text in UTF-8: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    if node is None:
        raise SettingError(f"{path} is empty")
    return Part(node, str(path), node.start_mark.line + 1)
