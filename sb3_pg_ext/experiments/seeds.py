"""Where the randomness of a run comes from: streams of seeds that cannot meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BITS = 28  # of one stream: 2^27 first seeds, and room for 2^27 environments counted up from each
# Numbers of the streams; a new one goes to the end, so that the seeds of the others stay what they are.
_STREAMS = (
    "train",
    "evaluation",
    "test",
    "tuning train",
    "tuning evaluation",
    "choice train",
    "choice evaluation",
    "choice test",
)


@dataclass(frozen=True)
class Seeds:
    """Seeds of one run; environment i of a group takes ``seed + i``.

    :param train: of the algorithm and of its training environments
    :param evaluation: of the start states of the evaluations during training, the same for each of them
    :param test: of the start states of the test after training
    """

    train: int
    evaluation: int
    test: int


def seeds_of(master: int, replicate: int) -> Seeds:
    """Seeds of run number ``replicate`` of a study.

    Each stream has a range of numbers to itself, so that no run trains on a start state that any run is judged by.
    All algorithms share them: run k of each starts from the same seeds and meets the same evaluation episodes.

    :param master: chooses the set of seeds
    :param replicate: 0, 1, 2, ...
    :raises ValueError: one of them is negative
    """
    return Seeds(*(_seed(stream, master, replicate) for stream in ("train", "evaluation", "test")))


def tuning_seeds(master: int, replicate: int) -> Seeds:
    """Seeds of run number ``replicate`` of every trial of a tuning; no study of :func:`seeds_of` uses any of them.

    All trials share them, so that settings are compared on the same seeds. There is no test, and no seed for one.
    """
    return Seeds(_seed("tuning train", master, replicate), _seed("tuning evaluation", master, replicate), 0)


def choice_seeds(master: int, replicate: int) -> Seeds:
    """Seeds of run number ``replicate`` by which one of the best trials is chosen: fresh to the tuning before it, and
    not those of the studies that judge the choice."""
    return Seeds(*(_seed(stream, master, replicate) for stream in ("choice train", "choice evaluation", "choice test")))


def seeds_for(train: int) -> Seeds:
    """Seeds of a single run that trains with a seed of the user's choice, below 2^28.

    :raises ValueError: ``train`` is outside the range of training seeds
    """
    if not 0 <= train < 2**_BITS:
        raise ValueError(f"seed={train}: allowed is 0 to {2**_BITS - 1}")
    return Seeds(train, _seed("evaluation", train, 0), _seed("test", train, 0))


def _seed(stream: str, master: int, replicate: int) -> int:
    if master < 0 or replicate < 0:
        raise ValueError(f"seed={master}, replicate={replicate}: neither may be negative")
    number = _STREAMS.index(stream)
    sequence = np.random.SeedSequence(master, spawn_key=(number, replicate))
    return (number << _BITS) + int(sequence.generate_state(1)[0] >> (32 - _BITS + 1))
