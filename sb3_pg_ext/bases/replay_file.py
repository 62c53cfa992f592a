"""Files of replay buffers: never torn when written, harmless when read. The format is Stable-Baselines3's own."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import open_path

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.bases.model_archive import ModelFileError, UnsafeModelError, reason
from sb3_pg_ext.bases.safe_objects import RefusedError
from sb3_pg_ext.bases.safe_pickle import SafeReader

#: Operations that reading may take for each byte of the file, beside those that any small object may.
_WORK_PER_BYTE = 1


def save_replay_buffer(buffer: ReplayBuffer, path: Any) -> None:
    """Write ``buffer``.

    :param path: ``.pkl`` is added to a name without a suffix, folders are made; or a file object open for writing
    """
    if isinstance(path, (str, Path)):
        target = Path(path) if Path(path).suffix else Path(f"{path}.pkl")
        with atomic_write(target) as temporary, open(temporary, "wb") as file:
            pickle.dump(buffer, file, protocol=pickle.HIGHEST_PROTOCOL)
    else:
        pickle.dump(buffer, open_path(path, "w"), protocol=pickle.HIGHEST_PROTOCOL)


def load_replay_buffer(path: Any, allow: Iterable[Any]) -> ReplayBuffer:
    """Read a buffer without running anything in the file.

    :param path: name with or without ``.pkl``, or a file object
    :param allow: classes that the file may hold
    :raises UnsafeModelError: it needs something that is not on the list of harmless names
    :raises ModelFileError: damaged, cut short, or something else
    """
    file: Any = open_path(path, "r", suffix="pkl")
    data = file.read()
    if isinstance(path, (str, Path)):
        file.close()
    try:
        buffer = SafeReader(allow, work=1_000_000 + _WORK_PER_BYTE * len(data)).read(data)
    except RefusedError as error:
        raise UnsafeModelError(str(path), {"": str(error)}) from error
    except Exception as error:
        raise ModelFileError(
            f"{path} is cut short, holds no replay buffer, or one of a class that cannot be read without running what "
            f"it says: {reason(error)}. If you trust its source: load_replay_buffer(path, trusted=True)"
        ) from error
    if not isinstance(buffer, ReplayBuffer):
        raise ModelFileError(f"{path} holds a {type(buffer).__name__}, not a replay buffer")
    return buffer


def check_same_spaces(buffer: ReplayBuffer, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """:raises ValueError: what is in the buffer comes from other spaces than those of the model"""
    for name, own in (("observation_space", observation_space), ("action_space", action_space)):
        its = getattr(buffer, name, None)
        if its != own:
            raise ValueError(f"The replay buffer is one of {name}={its}, but that of the model is {own}")
