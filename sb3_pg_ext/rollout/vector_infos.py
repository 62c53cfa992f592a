"""gymnasium's dict of arrays as Stable-Baselines3's list of dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np


def unbatch(
    batched: Mapping[str, Any], slots: list[dict[str, Any]], skip: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Write each entry of a vector environment's ``info`` into the dict of the slot that it belongs to.

    ``{"x": [1.0, 0.0], "_x": [True, False]}`` gives slot 0 ``{"x": 1.0}`` and slot 1 nothing. Scalars become plain
    Python numbers. An entry without a mask ``_x`` belongs to every slot; one without an axis of N slots is given whole.

    :param batched: name -> (N,) or (N, ...) array, sequence of N, or a dict of these
    :param slots: N dicts, filled in place
    :param skip: names to leave out
    :return: ``slots``
    """
    for name, values in batched.items():
        if name in skip or (name[:1] == "_" and name[1:] in batched):  # the latter is the mask of another entry
            continue
        mask = batched.get(f"_{name}")
        rows = _rows(values, len(slots), masked=mask is not None)
        for i in range(len(slots)) if mask is None else np.flatnonzero(mask).tolist():
            slots[i][name] = rows[i]
    return slots


def _rows(values: Any, n: int, masked: bool) -> Sequence[Any]:
    if isinstance(values, dict):
        return unbatch(values, [{} for _ in range(n)])
    if not (masked or _has_slots(values, n)):
        return [values] * n
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.tolist()
    return [np.copy(row) if isinstance(row, np.ndarray) else row for row in values]


def _has_slots(values: Any, n: int) -> bool:
    sized = isinstance(values, (list, tuple)) or bool(getattr(values, "shape", ()))
    return sized and len(values) == n
