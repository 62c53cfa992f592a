"""Settings as the parameters that an Optuna trial would hold: the inverse of :func:`sb3_pg_ext.spec.suggest`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sb3_pg_ext.experiments.values import initial
from sb3_pg_ext.spec import Choice, Dimension, Float, Int, OneMinus, Space, When, is_used, lookup


def parameters_of(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the trial whose settings are nearest to ``settings``.

    A number outside its range becomes the nearest end of it, a schedule the number with which it begins. What has no
    counterpart, such as ``None`` for a number, or a list that is not among the choices, is left out: the sampler
    chooses it.

    :param space: the search space
    :param settings: nested, such as the defaults of a constructor
    """
    parameters: dict[str, Any] = {}
    for name, dimension in space.items():
        if is_used(dimension, settings):
            inner = dimension.dimension if isinstance(dimension, When) else dimension
            parameters |= _parameter(name, inner, initial(lookup(settings, name)))
    return parameters


def _parameter(name: str, dimension: Dimension, value: Any) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        value = list(value) if isinstance(value, tuple) else value
        if not any(option == value and type(option) is type(value) for option in dimension.options):
            return {}
        return {name: json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value}
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return {}
    match dimension:
        case Float(low, high):
            return {name: min(max(float(value), low), high)}
        case OneMinus(low, high):
            return {f"1-{name}": min(max(1.0 - value, low), high)}
        case Int(low, high, power=None):
            return {name: min(max(round(value), low), high)}
        case Int(low, high, power=int(power)):
            exponent = round(math.log(max(value, 1), power))
            return {f"log{power}({name})": min(max(exponent, low), high)}
    return {}
