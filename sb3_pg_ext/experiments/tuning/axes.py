"""The searched settings as axes on which trials have places."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from sb3_pg_ext.experiments.values import as_text
from sb3_pg_ext.spec import Choice, Dimension, Float, Int, OneMinus, Space, When


@dataclass(frozen=True)
class Axis:
    """One searched setting.

    A place is the number that the sampler drew: an exponent, a distance from 1, the number of an option.

    :param name: of the setting
    :param dimension: how it is searched, without its condition
    :param condition: under which it is searched, for people; empty if it always is
    """

    name: str
    dimension: Float | OneMinus | Int | Choice
    condition: str = ""

    @property
    def parameter(self) -> str:
        """What it is called in a trial; see :func:`sb3_pg_ext.spec.suggest`."""
        match self.dimension:
            case OneMinus():
                return f"1-{self.name}"
            case Int(power=int(power)):
                return f"log{power}({self.name})"
        return self.name

    @property
    def log(self) -> bool:
        """Whether places are to be shown on a logarithmic scale."""
        return isinstance(self.dimension, OneMinus) or getattr(self.dimension, "log", False)

    @property
    def options(self) -> tuple[str, ...]:
        """Those of a choice as they would be typed, by place; empty for numbers."""
        return tuple(map(as_text, self.dimension.options)) if isinstance(self.dimension, Choice) else ()

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest place."""
        if isinstance(self.dimension, Choice):
            return 0.0, len(self.dimension.options) - 1.0
        return float(self.dimension.low), float(self.dimension.high)

    def place(self, trial: FrozenTrial) -> float | None:
        """Where ``trial`` is; ``None`` if it has no such setting."""
        if self.parameter not in trial.params:
            return None
        drawn = trial.params[self.parameter]
        return float(_stored(self.dimension).index(drawn) if isinstance(self.dimension, Choice) else drawn)

    def text(self, place: float) -> str:
        """The value of the setting at ``place``, short."""
        match self.dimension:
            case Choice():
                return self.options[round(place)]
            case OneMinus():
                return f"{1.0 - float(f'{place:.3g}'):.10g}"
            case Int(power=int(power)):
                return f"{power ** round(place)}"
        return compact(place)

    @property
    def words(self) -> str:
        """The range in words."""
        match self.dimension:
            case Choice():
                return " · ".join(self.options)
            case OneMinus(low, high):
                return f"{1 - high:g} to {1 - low:g}, the distance from 1 on a logarithmic scale"
            case Int(low, high, power=int(power)):
                return f"{power**low} to {power**high}, powers of {power}"
            case Int(low, high, log):
                return f"{low} to {high}, whole numbers" + (" on a logarithmic scale" if log else "")
            case Float(low, high, log):
                return f"{compact(low)} to {compact(high)}" + (", on a logarithmic scale" if log else "")


def axes_of(space: Space) -> list[Axis]:
    """One axis per dimension, in the order of the space."""
    return [_axis(name, dimension) for name, dimension in space.items()]


def _axis(name: str, dimension: Dimension) -> Axis:
    if not isinstance(dimension, When):
        return Axis(name, dimension)
    return Axis(name, dimension.dimension, f"{dimension.name} is {' or '.join(map(as_text, dimension.values))}")


def _stored(choice: Choice) -> list[Any]:
    """The options as a trial holds them: lists and dicts as their JSON text."""
    return [json.dumps(o, sort_keys=True) if isinstance(o, (list, dict)) else o for o in choice.options]


def compact(value: float) -> str:
    """Three significant digits, small numbers as ``3e-5``."""
    text = f"{value:.3g}"
    if "e" not in text or not math.isfinite(value):
        return text
    digits, _, exponent = text.partition("e")
    return f"{digits}e{int(exponent)}"
