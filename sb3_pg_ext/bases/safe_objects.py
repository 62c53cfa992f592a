"""Checked versions of the functions and states that numpy, torch and the standard library write into pickles.

The originals trust their arguments: some call what they are given (``numpy.random._pickle.__generator_ctor``), some
unpickle again (``torch.storage._load_from_bytes``), some take raw bytes for pointers (a structured ``numpy.dtype``) or
index memory by a number of the file (MT19937). Those here accept what real objects consist of and nothing else.
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from torch.storage import TypedStorage

_PLAIN_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"} | {
    f"{kind}{size}" for kind in "SU" for size in range(256)
}
_BIT_GENERATORS = (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
_ENUMERATIONS: tuple[type[enum.Enum], ...] = (GoalSelectionStrategy, TrainFrequencyUnit)
_MT19937_WORDS, _PHILOX_WORDS = 624, 4


class RefusedError(Exception):
    """The pickle wants something that is not allowed; the message says what."""


def _check(fine: bool, name: str) -> None:
    if not fine:
        raise pickle.UnpicklingError(f"{name} is used as no model file uses it")


# --- functions


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    _check(isinstance(code, str) and code in _PLAIN_DTYPES, "numpy.dtype")
    return np.dtype(code, align=False, copy=True)  # a copy, because its byte order is set next


def _empty_array(subtype: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    _check(subtype is np.ndarray and shape == (0,), "numpy._core.multiarray._reconstruct")
    return np.empty(0, np.int8)


def _array(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any, axes: Any = None) -> np.ndarray:
    _check(isinstance(dtype, np.dtype), "numpy._core.numeric._frombuffer")
    array = np.frombuffer(buffer, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    _check(isinstance(dtype, np.dtype) and isinstance(data, bytes), "numpy._core.multiarray.scalar")
    return np.frombuffer(data, dtype, count=1)[0]


def _bit_generator(kind: Any = "MT19937") -> np.random.BitGenerator:
    for known in _BIT_GENERATORS:
        if kind is known or (isinstance(kind, str) and kind == known.__name__):
            return known()
    raise pickle.UnpicklingError("numpy.random._pickle.__bit_generator_ctor is used as no model file uses it")


def _generator(bits: Any = "MT19937", constructor: Any = None) -> np.random.Generator:
    return np.random.Generator(bits if isinstance(bits, np.random.BitGenerator) else _bit_generator(bits))


def _random_state(bits: Any = "MT19937", constructor: Any = None) -> np.random.RandomState:
    return np.random.RandomState(bits if isinstance(bits, np.random.BitGenerator) else _bit_generator(bits))


def _seed_sequence(cls: type, checksum: int, state: None) -> np.random.SeedSequence:
    _check(cls is np.random.SeedSequence and state is None, "numpy.random.bit_generator.SeedSequence")
    return np.random.SeedSequence(0)


def _path(*parts: str) -> Path:
    return Path(*parts)


def _member(enumeration: type[enum.Enum], value: Any) -> enum.Enum:
    _check(isinstance(value, (str, int)), enumeration.__qualname__)
    return enumeration(value)


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _deque(items: Any = (), maxlen: int | None = None) -> deque[Any]:
    _check(isinstance(items, (list, tuple)), "collections.deque")
    return deque(items, maxlen)


def _storage(data: bytes) -> TypedStorage:
    # The bytes are a torch file of their own with a pickle inside; torch's restricted reader takes numbers only.
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedError("torch.storage._load_from_bytes with more than numbers inside") from error
    _check(isinstance(storage, TypedStorage), "torch.storage._load_from_bytes")
    return storage


def _tensor(
    storage: TypedStorage, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, extra: None = None
) -> torch.Tensor:
    _check(isinstance(storage, TypedStorage) and not hooks and not extra, "torch._utils._rebuild_tensor_v2")
    whole = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return whole.as_strided(size, stride, offset).requires_grad_(requires_grad)  # as_strided checks the bounds


def _device(kind: str, index: int | None = None) -> torch.device:
    _check(isinstance(kind, str), "torch.device")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _size(numbers: tuple[int, ...]) -> torch.Size:
    _check(isinstance(numbers, tuple), "torch.Size")
    return torch.Size(numbers)


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.nn.Parameter:
    _check(isinstance(data, torch.Tensor) and not hooks, "torch._utils._rebuild_parameter")
    return torch.nn.Parameter(data.detach(), requires_grad)


CHECKED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "deque"): _deque,
    **{("pathlib", f"{kind}Path"): _path for kind in ("Posix", "Windows", "PurePosix", "PureWindows")},
    **{("pathlib._local", f"{kind}Path"): _path for kind in ("Posix", "Windows", "PurePosix", "PureWindows")},
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
    ("numpy.random._pickle", "__bit_generator_ctor"): _bit_generator,
    ("numpy.random._pickle", "__generator_ctor"): _generator,
    ("numpy.random._pickle", "__randomstate_ctor"): _random_state,
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): _seed_sequence,
    **{(kind.__module__, kind.__qualname__): functools.partial(_member, kind) for kind in _ENUMERATIONS},
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}
"""Name in the file -> the function that is called instead."""


# --- states


@functools.singledispatch
def restore(instance: Any, state: Any) -> None:
    """Give ``instance`` its state as pickle would, but never through attributes of the instance itself."""
    setter = getattr(type(instance), "__setstate__", None)
    if setter is not None:
        setter(instance, state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    instance.__dict__.update(attributes or {})
    for name, value in (slots or {}).items():
        object.__setattr__(instance, name, value)


@restore.register(enum.Enum)
def _restore_enum(member: enum.Enum, state: Any) -> None:
    raise RefusedError(f"a change of {member}, which everybody shares")


@restore.register(LinearSchedule)
def _restore_schedule(schedule: LinearSchedule, state: Any) -> None:
    _check(isinstance(state, dict), "stable_baselines3.common.utils.LinearSchedule")
    if "initial_value" in state:  # the zoo's own, which falls to 0 at the very end
        state = {"start": state["initial_value"], "end": 0.0, "end_fraction": 1.0}
    schedule.__dict__.update(state)


@restore.register(spaces.Box)
@restore.register(spaces.MultiDiscrete)
def _restore_space(space: spaces.Space, state: Any) -> None:
    # These two compute with their state, to fill in what older versions did not store.
    arrays = ("low", "high") if isinstance(space, spaces.Box) else ("nvec",)
    typed = isinstance(state["dtype"], np.dtype) and isinstance(state["_shape"], tuple)
    _check(typed and all(isinstance(state[name], np.ndarray) for name in arrays), type(space).__qualname__)
    type(space).__setstate__(space, state)


@restore.register(np.ndarray)
def _restore_array(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, _, data = state
    _check(isinstance(dtype, np.dtype) and isinstance(data, bytes) and min(shape, default=0) >= 0, "numpy.ndarray")
    array.__setstate__(state)


@restore.register(np.dtype)
def _restore_dtype(dtype: np.dtype, state: Any) -> None:
    order, structure, flags = state[1], state[2:5], state[7]
    _check(order in ("<", ">", "=", "|") and structure == (None, None, None) and flags == dtype.flags, "numpy.dtype")
    size = (dtype.itemsize, dtype.alignment) if dtype.kind in "SU" else (-1, -1)
    dtype.__setstate__((3, order, None, None, None, *size, flags))  # type: ignore[attr-defined]


@restore.register(np.random.SeedSequence)
def _restore_seed_sequence(sequence: np.random.SeedSequence, state: Any) -> None:
    _check(len(state) == 5, "numpy.random.bit_generator.SeedSequence")
    sequence.__setstate__(state)  # type: ignore[attr-defined]


@restore.register(np.random.BitGenerator)
def _restore_bits(bits: np.random.BitGenerator, state: Any) -> None:
    _check_position(state[0] if isinstance(state, tuple) else state)
    bits.__setstate__(state)  # type: ignore[attr-defined]


@restore.register(np.random.Generator)
@restore.register(np.random.RandomState)
def _restore_generator(generator: Any, state: Any) -> None:
    if state is not None:
        _check_position(state)
        generator.__setstate__(state)


def _check_position(state: Mapping[str, Any]) -> None:
    word, buffered = state["state"].get("pos", 0), state.get("buffer_pos", 0)
    _check(0 <= word <= _MT19937_WORDS and 0 <= buffered <= _PHILOX_WORDS, "numpy.random state")
