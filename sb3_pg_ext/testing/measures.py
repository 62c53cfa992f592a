"""What two models are compared by: everything that one has learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th


def learned(model: Any) -> dict[str, Any]:
    """A copy of what ``get_parameters()`` gives, optimizers included, as one flat dict of arrays and plain values."""
    return dict(_leaves("", deepcopy(model.get_parameters())))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case Mapping():
            for key, item in value.items():
                yield from _leaves(f"{name}/{key}", item)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _leaves(f"{name}/{index}", item)
        case th.Tensor():
            yield name, value.detach().cpu().numpy()
        case _:
            yield name, value


def weights(model: Any) -> dict[str, Any]:
    """The arrays of :func:`learned` outside the optimizers."""
    return {
        name: value for name, value in learned(model).items() if isinstance(value, np.ndarray) and "optim" not in name
    }


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of what is not equal, bit for bit, in two results of :func:`learned`."""
    return sorted({*a} ^ {*b}) + [name for name in a if name in b and not _same(a[name], b[name])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


def fingerprint(model: Any) -> str:
    """SHA-256 over :func:`learned`."""
    digest = hashlib.sha256()
    for name, value in sorted(learned(model).items()):
        digest.update(name.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def all_finite(model: Any) -> bool:
    """Whether every number that the model has learned, its optimizers' included, is finite."""
    arrays = [value for value in learned(model).values() if isinstance(value, np.ndarray)]
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind == "f")
