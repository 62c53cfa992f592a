"""Reading pickles without running what they say.

A pickle is a program for a small stack machine. Here the machine may name the classes of one table of
:mod:`~sb3_pg_ext.bases.safe_names`, make instances of those in the other, and call the functions of
:mod:`~sb3_pg_ext.bases.safe_objects`; anything else is refused before it happens.
"""

from __future__ import annotations

import importlib
import io
import pickle
import struct
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from sb3_pg_ext.bases.safe_names import MADE, NAMED, STAND_INS, allowed
from sb3_pg_ext.bases.safe_objects import CHECKED, RefusedError, restore

MAX_TUPLE_PATHS = 1_000
BYTES_PER_WORK = 64


class SafeReader:
    """Reads the pickles of one file, all of which together may do a bounded amount of work.

    :param allow: classes and functions of the caller's own that the file may hold
    :param work: how many operations the pickles may take; copying one element or 64 bytes counts as one
    """

    def __init__(self, allow: Iterable[Any] = (), work: int = 1_000_000):
        self.allowed = allowed(allow)
        self.work = work

    def read(self, data: bytes) -> Any:
        """The object that ``data`` describes.

        :raises RefusedError: it needs something that is not allowed
        :raises Exception: anything else that damaged data may cause
        """
        return _Machine(data, self).load()

    def spend(self, work: int) -> None:
        """:raises UnpicklingError: the work is used up"""
        self.work -= work
        if self.work < 0:
            raise pickle.UnpicklingError("the pickled objects are far larger than any model needs")


class _Machine(pickle._Unpickler):
    """The standard library's machine in Python, with checks where it calls, changes or allocates."""

    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, data: bytes, reader: SafeReader):
        super().__init__(io.BytesIO(data))
        self.reader = reader
        # By identity, since a comparison could be the file's own; the values keep the identities valid.
        self.functions: dict[int, Any] = {}
        self.classes: dict[int, Any] = {}
        self.paths: dict[int, tuple[Any, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        pair = (module, name)
        if pair not in self.reader.allowed:
            pair = STAND_INS.get(pair, pair)
        if pair in self.reader.allowed:
            found = self.reader.allowed[pair]
            self.functions[id(found)] = self.classes[id(found)] = found
        elif pair in CHECKED:
            found = self.functions[id(CHECKED[pair])] = CHECKED[pair]
        elif pair in MADE:
            found = _found(*pair)
            self.classes[id(found)] = found
        elif pair in NAMED:
            found = _found(*pair)
        else:
            raise RefusedError(f"{module}.{name}")
        return found

    def call(self, permitted: bool, target: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """``function(...)``, which is ``target`` itself or its ``__new__``."""
        if not permitted:
            raise RefusedError(f"a call of {_label(target)}")
        self.reader.spend(_extent(args) + _extent(kwargs))
        made = function(*args, **kwargs)
        if isinstance(made, tuple):
            self.limit(made)
        return made

    def limit(self, made: tuple[Any, ...]) -> None:
        """Limit the paths through nested tuples: a hash walks every one, and ``t = (t, t)`` doubles them."""
        paths = 1 + sum(self.paths[id(item)][1] for item in made if id(item) in self.paths)
        if paths > MAX_TUPLE_PATHS:
            raise pickle.UnpicklingError("tuples are nested more than any model needs")
        self.paths[id(made)] = (made, paths)


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _label(value: Any) -> str:
    named = value if isinstance(value, (type, FunctionType, BuiltinFunctionType)) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _extent(value: Any, depth: int = 2) -> int:
    """Work to copy ``value``, looking into arguments and states but no deeper."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value) // BYTES_PER_WORK
    if not isinstance(value, (list, tuple, dict, set, frozenset, deque)):
        return 0
    inner = (value.values() if isinstance(value, dict) else value) if depth else ()
    return len(value) + sum(_extent(item, depth - 1) for item in inner)


# --- operations that differ from the standard library's

Operation = Callable[[_Machine], None]


def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    function = machine.stack[-1]
    machine.stack[-1] = machine.call(id(function) in machine.functions, function, function, *args)


def _new(machine: _Machine) -> None:
    args = machine.stack.pop()
    cls = machine.stack[-1]
    machine.stack[-1] = machine.call(id(cls) in machine.classes, cls, cls.__new__, cls, *args)


def _new_with_keywords(machine: _Machine) -> None:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    cls = machine.stack[-1]
    machine.stack[-1] = machine.call(id(cls) in machine.classes, cls, cls.__new__, cls, *args, **kwargs)


def _build(machine: _Machine) -> None:
    state, instance = machine.stack.pop(), machine.stack[-1]
    kind = type(instance)
    if id(kind) not in machine.classes and restore.dispatch(kind) is restore.dispatch(object):
        raise RefusedError(f"a change of {_label(instance)}")
    machine.reader.spend(_extent(state))
    restore(instance, state)


def _bytearray(machine: _Machine) -> None:
    (size,) = struct.unpack("<Q", machine.read(8))
    data = machine.read(size)  # unlike a bytearray of the promised size, never more than there is
    if len(data) != size:
        raise EOFError("a bytearray is cut short")
    machine.stack.append(bytearray(data))


def _unusual(machine: _Machine) -> None:
    raise RefusedError("a pickle operation that is not used for model files")


def _filling(operation: Operation, kinds: tuple[type, ...], target: Callable[[_Machine], Any]) -> Operation:
    """``operation``, for plain containers only: of others "append" could be an attribute that the file has set."""

    def fill(machine: _Machine) -> None:
        if not isinstance(target(machine), kinds):
            raise RefusedError(f"a change of {_label(target(machine))}")
        operation(machine)

    return fill


def _limited(operation: Operation) -> Operation:
    def limit(machine: _Machine) -> None:
        operation(machine)
        machine.limit(machine.stack[-1])

    return limit


def _counted(operation: Operation) -> Operation:
    def count(machine: _Machine) -> None:
        machine.reader.spend(1)
        operation(machine)

    return count


def _before_mark(machine: _Machine) -> Any:
    return machine.metastack[-1][-1]


def _operations() -> dict[int, Any]:
    usual: dict[int, Any] = dict(pickle._Unpickler.dispatch)
    own: dict[bytes, Operation] = {
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _new,
        pickle.NEWOBJ_EX: _new_with_keywords,
        pickle.BUILD: _build,
        pickle.BYTEARRAY8: _bytearray,
        pickle.APPEND: _filling(usual[pickle.APPEND[0]], (list, deque), lambda machine: machine.stack[-2]),
        pickle.APPENDS: _filling(usual[pickle.APPENDS[0]], (list, deque), _before_mark),
        pickle.SETITEM: _filling(usual[pickle.SETITEM[0]], (dict,), lambda machine: machine.stack[-3]),
        pickle.SETITEMS: _filling(usual[pickle.SETITEMS[0]], (dict,), _before_mark),
        pickle.ADDITEMS: _filling(usual[pickle.ADDITEMS[0]], (set,), _before_mark),
    }
    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        own[code] = _limited(usual[code[0]])
    for code in (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID):
        own[code] = _unusual
    for code in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        own[code] = _unusual
    return {code: _counted(operation) for code, operation in (usual | {c[0]: o for c, o in own.items()}).items()}


_Machine.dispatch = _operations()
