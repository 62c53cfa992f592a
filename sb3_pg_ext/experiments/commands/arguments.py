"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import math


def whole(text: str) -> int:
    """A whole number that is at least 1, also as 1e6 or 50_000."""
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def count(text: str) -> int:
    """A whole number that is at least 0, also as 1e6 or 50_000."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and value == math.floor(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)
