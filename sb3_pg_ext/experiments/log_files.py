"""Files in the folders of runs: settings, evaluations and episodes of training, read as plain data.

Nothing in a file is executed: YAML is read by a loader that builds plain data alone, arrays without pickle.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.values import SettingError, read_value

N_WINDOWS = 20  # of a learning curve that is made of the episodes of training


class UnreadableRunError(ValueError):
    """The files of a run are damaged, tell too little, or tell of a run that did not come to its end."""


class _PlainLoader(yaml.SafeLoader):
    """Builds plain data alone; the zoo's own ordered dicts and tuples become dicts and lists."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    arguments = _sequence(loader, node)
    return dict(arguments[0]) if arguments else {}


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    return loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]


def _words(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    return suffix  # the name of a class or function stays a name


_PlainLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _words)


def read_zoo_yaml(path: Path) -> dict[str, Any]:
    """``args.yml`` or ``config.yml`` as plain data; nothing if there is no such file.

    :raises UnreadableRunError: it is no YAML, or asks for objects
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UnreadableRunError(f"{path} is not plain YAML: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path} is not a table of settings")
    return {str(name): _plain(value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        try:
            return read_value(value)
        except SettingError:
            return value
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def read_evaluations(path: Path) -> list[Evaluation]:
    """``evaluations.npz`` of Stable-Baselines3's ``EvalCallback``.

    :raises UnreadableRunError: it is damaged or something else
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            steps, returns, lengths = (arrays[name] for name in ("timesteps", "results", "ep_lengths"))
        rows = zip(steps.tolist(), returns.tolist(), lengths.tolist(), strict=True)
        found = [Evaluation(int(step), tuple(map(float, r)), tuple(map(int, n)), 0.0) for step, r, n in rows]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise UnreadableRunError(f"{path} is no file of evaluations: {error}") from None
    if any(later.step <= earlier.step for earlier, later in pairwise(found)):
        raise UnreadableRunError(f"{path}: the steps of its evaluations do not increase")
    if not all(e.returns and np.isfinite(e.returns).all() for e in found):
        raise UnreadableRunError(f"{path}: an evaluation has no returns, or some that are not finite")
    return found


@dataclass(frozen=True)
class Episode:
    """An episode of training.

    :param ended: seconds of wall clock since the epoch
    """

    ended: float
    episode_return: float
    length: int


def read_header(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
        content = json.loads(first.removeprefix("#"))
    except (OSError, ValueError) as error:
        raise UnreadableRunError(f"{path} is no file of Monitor: {error}") from None
    if not first.startswith("#") or not isinstance(content, dict) or type(content.get("t_start")) not in (int, float):
        raise UnreadableRunError(f"{path} is no file of Monitor: its first line is {first[:60]!r}")
    return content


def read_monitors(paths: Sequence[Path]) -> list[Episode]:
    """The episodes of all copies of an environment, in the order in which they ended.

    A last line that was cut short by the end of the process is left out.

    :raises UnreadableRunError: a file is not one of ``Monitor``
    """
    return sorted((episode for path in paths for episode in _episodes(path)), key=lambda episode: episode.ended)


def _episodes(path: Path) -> Iterator[Episode]:
    start = float(read_header(path)["t_start"])
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    for number, row in enumerate(csv.DictReader(lines), start=3):
        try:
            episode = Episode(start + float(row["t"]), float(row["r"]), int(row["l"]))
        except (KeyError, TypeError, ValueError):
            if number > len(lines):
                return
            raise UnreadableRunError(f"{path}, line {number}: expected r, l and t, but it is {row}") from None
        if not (math.isfinite(episode.episode_return) and math.isfinite(episode.ended)):
            raise UnreadableRunError(f"{path}, line {number}: r and t must be finite, but it is {row}")
        yield episode


def windows(episodes: Sequence[Episode], n_windows: int = N_WINDOWS) -> list[Evaluation]:
    """The episodes of training as a learning curve: those that ended in each window of steps, at its end.

    :param episodes: in the order in which they ended; steps are the sum of their lengths
    :param n_windows: of equal numbers of steps; one in which no episode ended is left out
    """
    ends = np.cumsum([episode.length for episode in episodes])
    total = int(ends[-1]) if len(ends) else 0
    found = []
    for window in range(1, n_windows + 1):
        low, high = total * (window - 1) // n_windows, total * window // n_windows
        inside = [e for e, end in zip(episodes, ends, strict=True) if low < end <= high]
        if inside:
            found.append(
                Evaluation(high, tuple(e.episode_return for e in inside), tuple(e.length for e in inside), 0.0)
            )
    return found
