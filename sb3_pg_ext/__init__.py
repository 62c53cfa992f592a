"""The policy-gradient family for Stable-Baselines3.

>>> from sb3_pg_ext import make
>>> model = make("reinforce", "CartPole-v1", n_envs=8, seed=0).learn(100_000)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from sb3_pg_ext.envs import register_envs
from sb3_pg_ext.registry import available, get, keys, load, make, register
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int, OneMinus, When, suggest

__version__ = "0.1.0"
__all__ = [
    "AlgorithmSpec",
    "Choice",
    "Float",
    "Int",
    "OneMinus",
    "When",
    "available",
    "get",
    "keys",
    "load",
    "make",
    "register",
    "suggest",
]

register_envs()


def __getattr__(name: str) -> Any:
    """``from sb3_pg_ext import REINFORCE``: our own classes load when they are asked for."""
    from sb3_pg_ext.registry import own_class

    try:
        return own_class(name)
    except KeyError:
        raise AttributeError(f"module 'sb3_pg_ext' has no attribute {name!r}") from None
