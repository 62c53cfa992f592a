"""Which kinds of values a model may log, as plain Python and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Image


def number(value: Any) -> float | None:
    """A scalar of Python, numpy or torch as a float; ``None`` if it is something else."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        return float(value)
    return None


def finite_entries(value: np.ndarray | torch.Tensor) -> np.ndarray:
    """The entries that a histogram can count, in one row.

    :raises ValueError: there is none
    """
    entries = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=float).ravel()
    finite = entries[np.isfinite(entries)]
    if not finite.size:
        raise ValueError("no entry of the array is finite")
    return finite


def pixels(image: Image) -> np.ndarray:
    """An image as bytes in the order (height, width, channel), or (height, width).

    :raises ValueError: it is a file or a batch of images
    """
    if isinstance(image.image, str) or sorted(image.dataformats) not in (sorted("HWC"), sorted("HW")):
        raise ValueError(f"an array of one image is needed, and its data format is {image.dataformats!r}")
    array = image.image.detach().cpu().numpy() if isinstance(image.image, torch.Tensor) else np.asarray(image.image)
    array = array.transpose([image.dataformats.index(axis) for axis in "HWC" if axis in image.dataformats])
    if array.dtype != np.uint8:  # as in tensorboard: floats are shares of full brightness
        array = (np.clip(array, 0.0, 1.0) * 255).round().astype(np.uint8)
    return array
