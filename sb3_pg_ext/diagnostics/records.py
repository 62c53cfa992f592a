"""Measurements as JSON text and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sb3_pg_ext.diagnostics.laboratory import AtSize, Measurement
from sb3_pg_ext.diagnostics.statistics import FALSE_ALARM, Deviation
from sb3_pg_ext.spec import GradientClaim


def to_json(measurements: Sequence[Measurement], command: str = "") -> str:
    """JSON text that :func:`from_json` turns back into equal measurements.

    :param command: what they were made with
    """
    rows = [{**asdict(one), "agrees": one.agrees, "verdict": one.verdict} for one in measurements]
    return json.dumps(_plain({"command": command, "false_alarm": FALSE_ALARM, "measurements": rows}), indent=1) + "\n"


def from_json(text: str) -> tuple[list[Measurement], str]:
    """The measurements, and the command that they were made with."""
    record = json.loads(text, object_hook=_number)
    return [_measurement(row) for row in record["measurements"]], record["command"]


def _measurement(row: dict[str, Any]) -> Measurement:
    claim = {**row["claim"], "action_spaces": tuple(row["claim"]["action_spaces"])}
    sizes = [AtSize(**{**size, "deviation": _deviation(size["deviation"])}) for size in row["sizes"]]
    derived: dict[str, Any] = {
        "claim": GradientClaim(**claim),
        "sizes": tuple(sizes),
        "limit": _deviation(row["limit"]),
    }
    plain = ("algorithm", "testbed", "n_parameters", "target_cosine", "target_length", "gradient_length")
    own = {name: row[name] for name in plain}
    return Measurement(**own, **derived)


def _deviation(row: dict[str, Any] | None) -> Deviation | None:
    return None if row is None else Deviation(**row)


def _plain(value: Any) -> Any:
    """What JSON has no number for is named: ``{"float": "inf"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _number(row: dict[str, Any]) -> Any:
    return float(row["float"]) if set(row) == {"float"} else row
