"""Settings as text: read into plain data without evaluating anything, and turned into objects where a model is built.

Plain data is what JSON and YAML can hold: None, bool, int, float, str, lists and dicts with text keys. Names such as
``nn.ReLU`` and schedules such as ``lin_3e-4`` stay text in it, so that a run can be written down, hashed and compared;
:func:`materialise` puts the objects in their place.

>>> read_value("dict(net_arch=[64, 64], activation_fn=nn.ReLU)")
{'net_arch': [64, 64], 'activation_fn': 'nn.ReLU'}
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
import re
from collections.abc import Mapping
from typing import Any

# Every name that a setting may use; nothing else is ever imported by name.
NAMES = {
    **{
        f"nn.{name}": f"torch.nn:{name}"
        for name in ("ReLU", "Tanh", "ELU", "SiLU", "GELU", "LeakyReLU", "SELU", "Sigmoid", "Softplus", "Mish")
    },
    **{f"th.optim.{name}": f"torch.optim:{name}" for name in ("Adam", "AdamW", "RMSprop", "SGD")},
    "RMSpropTFLike": "stable_baselines3.common.sb2_compat.rmsprop_tf_like:RMSpropTFLike",
    "HerReplayBuffer": "stable_baselines3:HerReplayBuffer",
    "DictRolloutBuffer": "stable_baselines3.common.buffers:DictRolloutBuffer",
    "RolloutBuffer": "stable_baselines3.common.buffers:RolloutBuffer",
    "NatureCNN": "stable_baselines3.common.torch_layers:NatureCNN",
}
_SPELLINGS = {"torch.nn.": "nn.", "th.nn.": "nn.", "torch.optim.": "th.optim.", "optim.": "th.optim."}
_NAMED_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_WORD = re.compile(r"[A-Za-z_][\w.:/+-]*")
_SCHEDULE = re.compile(r"lin_(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)")
_MAX_LENGTH = 10_000


class SettingError(ValueError):
    """A setting that cannot be read, does not exist or does not fit; the message says which, and what is allowed."""


def read_value(text: str) -> Any:
    """One setting as plain data.

    Numbers, quoted text, ``None``/``True``/``False`` (also ``null``/``true``/``false``), lists, tuples (as lists),
    dicts, ``dict(key=value)`` and the names in :data:`NAMES`; a single bare word is text.

    :param text: as typed
    :raises SettingError: anything else, such as a call, an operation or an unfinished bracket
    """
    stripped = text.strip()
    if len(stripped) > _MAX_LENGTH:
        raise SettingError(f"a value of {len(stripped)} characters is too long; at most {_MAX_LENGTH} are read")
    if _SCHEDULE.fullmatch(stripped):
        return stripped
    if _WORD.fullmatch(stripped):
        return _word(stripped)
    try:
        return _plain(ast.parse(stripped, mode="eval").body)
    except SettingError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SettingError(
            f"{text!r} is not a value: expected a number, text, a list, a dict, dict(key=value) or one of the names "
            f"{', '.join(NAMES)}"
        ) from None


def _word(word: str) -> Any:
    name = canonical_name(word)
    if word in _NAMED_CONSTANTS:
        return _NAMED_CONSTANTS[word]
    if name not in NAMES and name.startswith(("nn.", "th.", "torch.")):
        raise SettingError(f"{word!r} is not a known name. {_nearest(name)}")
    return name


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | str() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return _finite(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return _finite(-value if isinstance(sign, ast.USub) else value)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_plain(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _plain(value) for key, value in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {_key(word.arg): _plain(word.value) for word in keywords}
        case ast.Name() | ast.Attribute():
            return _name(ast.unparse(node))
    raise SettingError(f"{ast.unparse(node)!r} is not allowed in a value: only constants, lists, dicts and known names")


def _finite(value: float) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"a number in the value is {value}: only finite numbers are read")
    return value


def _key(key: ast.expr | str | None) -> str:
    name = key.value if isinstance(key, ast.Constant) else key
    if not isinstance(name, str):
        raise SettingError("a dict in the value has a key that is not text")
    return name


def _name(name: str) -> Any:
    if name in _NAMED_CONSTANTS:
        return _NAMED_CONSTANTS[name]
    if canonical_name(name) not in NAMES:
        raise SettingError(f"{name!r} is not a known name; text inside a list or dict needs quotes. {_nearest(name)}")
    return canonical_name(name)


def _nearest(name: str) -> str:
    return suggestion(name, NAMES) or f"Known: {', '.join(NAMES)}"


def suggestion(word: str, known: Any) -> str:
    """``"Did you mean 'gamma'?"``, or nothing if no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def canonical_name(name: str) -> str:
    """``torch.nn.ReLU`` and ``th.nn.ReLU`` as the ``nn.ReLU`` of :data:`NAMES`."""
    for spelling, short in _SPELLINGS.items():
        if name.startswith(spelling):
            return short + name.removeprefix(spelling)
    return name


def materialise(value: Any) -> Any:
    """Plain data with the objects that its texts stand for: names of :data:`NAMES`, and linear schedules.

    ``lin_3e-4`` is the schedule that falls from 3e-4 at the start to 0 at the end of training.
    """
    if isinstance(value, Mapping):
        return {key: materialise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [materialise(item) for item in value]
    if isinstance(value, str) and value in NAMES:
        module, _, attribute = NAMES[value].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if isinstance(value, str) and (schedule := _SCHEDULE.fullmatch(value)):
        from stable_baselines3.common.utils import LinearSchedule

        return LinearSchedule(float(schedule[1]), 0.0, 1.0)
    return value


def initial(value: Any) -> Any:
    """The number with which a schedule such as ``lin_3e-4`` begins; any other value as it is."""
    schedule = _SCHEDULE.fullmatch(value) if isinstance(value, str) else None
    return float(schedule[1]) if schedule else value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts laid over each other: a later layer wins, leaf by leaf."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            nested = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(below or {}, value) if nested else value
    return merged


def as_text(value: Any) -> str:
    """Plain data as it would be typed; :func:`read_value` gives it back."""
    if isinstance(value, str) and (_SCHEDULE.fullmatch(value) or _is_plain_word(value)):
        return value
    return _nested_text(value)


def _is_plain_word(text: str) -> bool:
    """Whether ``text`` is read as itself without quotes."""
    try:
        return bool(_WORD.fullmatch(text)) and _word(text) == text
    except SettingError:
        return False


def _nested_text(value: Any) -> str:
    if isinstance(value, Mapping) and all(isinstance(name, str) and name.isidentifier() for name in value):
        return f"dict({', '.join(f'{name}={_nested_text(item)}' for name, item in value.items())})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_nested_text, value))}]"
    return value if isinstance(value, str) and value in NAMES else repr(value)
