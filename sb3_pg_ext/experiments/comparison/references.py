"""Reference scores from a file: which return counts as 0 in an environment, and which as 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.results import Reference
from sb3_pg_ext.experiments.statistics import normalise
from sb3_pg_ext.experiments.values import SettingError

_EXAMPLE = "CartPole-v1: {low: 9.3, high: 500}"


def read_references(path: Path) -> dict[str, Reference]:
    """Environment id -> reference scores, from YAML: ``CartPole-v1: {low: 9.3, high: 500}``.

    :raises FileNotFoundError: there is no such file
    :raises SettingError: it is not such a table, or ``high`` is not above ``low``; the message names the environment
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is not plain YAML: {error}") from None
    if not isinstance(document, Mapping) or not document:
        raise SettingError(f"{path}: a table of environments is needed, such as {_EXAMPLE}")
    return {str(env_id): _reference(f"{path}, {env_id}", entry) for env_id, entry in document.items()}


def _reference(where: str, entry: Any) -> Reference:
    if not isinstance(entry, Mapping) or set(entry) != {"low", "high"}:
        raise SettingError(f"{where}: {entry!r} is not a table of low and high, such as {_EXAMPLE}")
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingError(f"{where}, {name}: {value!r} is not a number (1e3 is text in YAML, 1.0e+3 a number)")
    try:
        normalise(np.zeros(1), entry["low"], entry["high"])
    except ValueError as error:
        raise SettingError(f"{where}: {error}") from None
    return Reference(float(entry["low"]), float(entry["high"]))
