"""The way an algorithm and its settings are named on the command line.

``key``, ``key:argument=value,argument=value``, and either with a label of the user's own before it, ``label=key:...``:

>>> read_variant("reinforce:baseline=mean,policy_kwargs.net_arch=[64, 64]").arguments
{'baseline': 'mean', 'policy_kwargs': {'net_arch': [64, 64]}}
>>> read_variant("small=ppo:n_steps=64").label
'small'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_pg_ext.experiments.values import SettingError, merge, read_value
from sb3_pg_ext.spec import nest

_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Variant:
    """An algorithm, the settings that depart from its defaults, and the name under which results are shown.

    :param label: shown in tables and figures
    :param key: of the registry
    :param arguments: plain data, nested
    :param environments: ids of those in which it runs; ``None`` for all of the study
    """

    label: str
    key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environments: tuple[str, ...] | None = None

    def runs_in(self, env_id: str) -> bool:
        """Whether it takes part in an environment of the study."""
        return self.environments is None or env_id in self.environments


def read_variant(text: str) -> Variant:
    """``label=key:argument=value,...`` as a :class:`Variant`; without a label, the text itself is the label.

    :raises SettingError: the text does not have this form
    """
    head, colon, tail = text.strip().partition(":")
    label, equals, key = head.rpartition("=")
    key = key.strip()
    if not key or (equals and not label.strip()) or (colon and not tail.strip()):
        raise SettingError(f"{text!r}: expected key, key:argument=value,... or label=key:argument=value,...")
    if not key.isidentifier():
        raise SettingError(f"{text!r}: {key!r} is not an algorithm key, such as 'reinforce'")
    return Variant(label.strip() or text.strip(), key, read_arguments(split_arguments(tail), separator="="))


def read_arguments(items: Iterable[str], separator: str) -> dict[str, Any]:
    """``["gamma=0.9", "policy_kwargs.net_arch=[64]"]`` as nested plain data.

    :param separator: between a name and its value: ``"="`` in a variant, ``":"`` in the zoo's ``-params``
    :raises SettingError: an item without a name or a value, a name given twice, or a value that cannot be read
    """
    given: dict[str, Any] = {}
    for item in items:
        name, found, value = item.partition(separator)
        name = name.strip()
        if not found or not value.strip() or not all(part.isidentifier() for part in name.split(".")):
            raise SettingError(f"{item.strip()!r}: expected name{separator}value")
        if name in given:
            raise SettingError(f"{item.strip()!r}: {name!r} is given twice")
        try:
            given[name] = read_value(value)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from None
    return merge(*(nest({name: value}) for name, value in given.items()))


def split_arguments(text: str) -> list[str]:
    """``text`` cut at the commas that stand outside brackets and quotes.

    :raises SettingError: a bracket or a quote is not closed
    """
    return [piece for piece in _pieces(text) if piece.strip()]


def _pieces(text: str) -> Iterator[str]:
    start, open_brackets, quote = 0, "", ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[position - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            open_brackets += _CLOSING[_OPENING.index(character)]
        elif character in _CLOSING:
            if not open_brackets.endswith(character):
                raise SettingError(f"{text!r}: {character!r} at position {position + 1} closes nothing")
            open_brackets = open_brackets[:-1]
        elif character == "," and not open_brackets:
            yield text[start:position]
            start = position + 1
    if quote or open_brackets:
        raise SettingError(f"{text!r}: {quote or open_brackets[-1]!r} is missing at the end")
    yield text[start:]
