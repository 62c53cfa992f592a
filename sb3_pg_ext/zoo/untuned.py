"""What rl_zoo3 reads, as ``hyperparams``, for an environment that no file has settings for: none.

The constructor's defaults apply. The policy, chosen by the observations, and the budget are added where it is read.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "hyperparams":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {"default": {}}  # a new one each time, because rl_zoo3 writes into it
