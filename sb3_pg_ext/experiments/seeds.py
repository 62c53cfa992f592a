"""Where the randomness of a run comes from: three streams of seeds that cannot meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BITS = 28  # of one stream: 2^27 first seeds, and room for 2^27 environments counted up from each


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
    if master < 0 or replicate < 0:
        raise ValueError(f"seed={master}, replicate={replicate}: neither may be negative")
    return Seeds(*(_seed(stream, master, replicate) for stream in range(3)))


def seeds_for(train: int) -> Seeds:
    """Seeds of a single run that trains with a seed of the user's choice, below 2^28.

    :raises ValueError: ``train`` is outside the range of training seeds
    """
    if not 0 <= train < 2**_BITS:
        raise ValueError(f"seed={train}: allowed is 0 to {2**_BITS - 1}")
    return Seeds(train, _seed(1, train, 0), _seed(2, train, 0))


def _seed(stream: int, master: int, replicate: int) -> int:
    sequence = np.random.SeedSequence(master, spawn_key=(stream, replicate))
    return (stream << _BITS) + int(sequence.generate_state(1)[0] >> (32 - _BITS + 1))
