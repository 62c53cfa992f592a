"""Whether more seeds are needed: a test that may be repeated while seeds are added in groups.

A p-value that is looked at again after each new seed, until it is small, is small sooner or later whether there is a
difference or not. A group-sequential test fixes beforehand how many looks there will be and how many seeds are added
before each, and shares the error that it may make out among the looks. This one is the test of AdaStop (Mathieu,
Della Vecchia, Shilova, Centa, Kohler, Maillard, Preux 2024, AdaStop: Adaptive Statistical Testing for Sound Comparisons
of Deep RL Agents, TMLR): permutations within groups, the largest statistic over pairs, one pair rejected after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy import stats

from sb3_pg_ext.experiments.statistics.aggregates import Array

State = Literal["different", "equal", "open"]
_PERMUTATIONS = 10_000
_DECIMALS = 9  # beyond them, statistics that are equal but for the order of additions differ


@dataclass(frozen=True)
class Design:
    """What has to be fixed before the first look.

    :param groups: the largest number of looks, K
    :param size: seeds of each algorithm that are added before each look, n
    :param alpha: probability of calling any pair different that is not, over all pairs and all looks
    :raises ValueError: a number is out of range, or no result whatever could be significant
    """

    groups: int = 5
    size: int = 5
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name in ("groups", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}: a probability between 0 and 1 is needed, such as 0.05")
        if self.first_look is None:
            least = 2 / math.comb(2 * self.size, self.size) ** self.groups
            raise ValueError(
                f"groups={self.groups}, size={self.size}, alpha={self.alpha}: so few seeds cannot show any difference, "
                f"the smallest p-value there is being {least:.2g}; more groups or larger ones are needed"
            )

    @property
    def seeds(self) -> int:
        """The most seeds of an algorithm that may be needed, K n."""
        return self.groups * self.size

    @property
    def first_look(self) -> int | None:
        """The number of the first look at which a pair can be called different.

        Of binomial(2 n, n)^k permutations, the one that was observed and its mirror image are the most extreme.
        """
        chances = ((k, 2 / math.comb(2 * self.size, self.size) ** k) for k in range(1, self.groups + 1))
        return next((k for k, chance in chances if chance <= self.spent(k)), None)

    def spent(self, look: int) -> float:
        """The share of ``alpha`` that may be used up at a look, counted from 1: ``alpha k / K``."""
        return self.alpha * look / self.groups


@dataclass(frozen=True)
class Decision:
    """What is known of two algorithms.

    :param first: the one with the higher mean
    :param second: the other
    :param state: "different"; "equal", as far as all the seeds of the design can tell; "open": more seeds are needed
    :param looks: after how many looks it was decided, or is open
    :param difference: of the means over the seeds of these looks; NaN before the first
    """

    first: str
    second: str
    state: State
    looks: int
    difference: float


def settle(
    scores: Mapping[str, Any], design: Design | None = None, permutations: int = _PERMUTATIONS, seed: int = 0
) -> list[Decision]:
    """Which algorithms are different, with the seeds that there are so far.

    At look k, of a pair a, b with scores z_i of group i, observed and under permutations sigma within each group:

        T_k(sigma) = | sum_{i<=k} (sum_{j<=n} z_i,sigma(j) - sum_{j>n} z_i,sigma(j)) | / S_k
        S_k^2      = sum_{i<=k} sum_j (z_ij - mean z_i)^2

    The bound of a set of pairs is the smallest that is exceeded by no more than ``alpha k / K`` of the permutations,
    those included that exceeded one at an earlier look. S_k is the same for all permutations: two algorithms have the
    test of AdaStop itself, and pairs of large spread do not raise the bounds of all others.

    A look takes place when all algorithms of undecided pairs have their seeds for it. Two algorithms whose scores have
    the same distribution are called different with probability alpha at most, exactly; for several pairs it is so as
    far as permutations within pairs have the dependence between pairs (3.7 to 5.2 % of 5 % in simulations). The same
    mean with another spread is another distribution, and may be found (10 % where one spread is 25 times the other).

    :param scores: label -> (n,) one score per run, always in the same order; what is beyond the design is left out
    :param design: by default, five groups of five at 0.05
    :param permutations: about how many are drawn at random, the observed one among them; all, if there are no more
    :param seed: of the drawing: the same scores have the same decisions
    :return: one for each pair, in the order of the labels
    :raises ValueError: there are too few permutations for so small an alpha
    """
    design = design or Design()
    if design.alpha * permutations < 1:
        raise ValueError(
            f"alpha={design.alpha}: with {permutations} permutations it can be {1 / permutations:g} at least"
        )
    used = {label: np.asarray(values, dtype=np.float64)[: design.seeds] for label, values in scores.items()}
    decided: dict[tuple[str, str], tuple[State, int]] = {}
    open_pairs, looks = list(combinations(used, 2)), 0
    signs: Array | None = None
    while open_pairs and looks < design.groups and not missing_seeds(used, open_pairs, (looks + 1) * design.size):
        looks += 1
        signs = _signs(design, permutations, seed) if signs is None else signs
        statistics = _statistics(used, open_pairs, signs[:looks])
        for pair in _exceeding(statistics, design):
            decided[pair] = ("different", looks)
        open_pairs = [pair for pair in open_pairs if pair not in decided]
    rest: State = "equal" if looks == design.groups else "open"
    return [_decision(pair, *decided.get(pair, (rest, looks)), used, design) for pair in combinations(used, 2)]


def missing_seeds(scores: Mapping[str, Any], pairs: Iterable[tuple[str, str]], needed: int) -> dict[str, int]:
    """How many of ``needed`` seeds each algorithm of ``pairs`` lacks, those left out that lack none."""
    labels = dict.fromkeys(label for pair in pairs for label in pair)
    return {label: needed - len(scores[label]) for label in labels if len(scores[label]) < needed}


def _signs(design: Design, permutations: int, seed: int) -> Array:
    """(K, R, 2 n) +1 where a permutation puts a run to the first of a pair, else -1; the first one is the observed.

    Those of the first group are all that there are, equally often, if they are not too many: it is there that single
    ones count.
    """
    n_each = math.comb(2 * design.size, design.size)
    if n_each**design.groups <= permutations:
        return _signs_of_group(design.size)[np.indices((n_each,) * design.groups).reshape(design.groups, -1)]
    copies = permutations // n_each
    observed = np.repeat(np.array([1.0, -1.0]), design.size)
    drawn = np.tile(observed, (design.groups, copies * n_each or permutations, 1))
    drawn[:, 1:] = np.random.default_rng(seed).permuted(drawn[:, 1:], axis=2)
    if copies:
        drawn[0] = np.tile(_signs_of_group(design.size), (copies, 1))
    return drawn


def _signs_of_group(size: int) -> Array:
    """(binomial(2 n, n), 2 n) of all permutations in one group."""
    ahead = np.array(list(combinations(range(2 * size), size)))
    signs: Array = np.full((len(ahead), 2 * size), -1.0, dtype=np.float64)
    np.put_along_axis(signs, ahead, 1.0, axis=1)
    return signs


def _statistics(scores: Mapping[str, Array], pairs: Iterable[tuple[str, str]], signs: Array) -> dict[Any, Array]:
    """Pair -> (k, R) T of each look so far under each permutation."""
    looks, _, width = signs.shape
    size = width // 2
    labels = dict.fromkeys(label for pair in pairs for label in pair)
    groups = {label: scores[label][: looks * size].reshape(looks, size, 1) for label in labels}
    ahead = {label: (signs[:, :, :size] @ groups[label])[:, :, 0] for label in labels}
    behind = {label: (signs[:, :, size:] @ groups[label])[:, :, 0] for label in labels}
    return {(a, b): _scaled(ahead[a] + behind[b], groups[a], groups[b]) for a, b in pairs}


def _scaled(differences: Array, first: Array, second: Array) -> Array:
    """(k, R) sums over groups, in units of the spread, from (k, R) differences and (k, n, 1) scores."""
    both = np.concatenate([first, second], axis=1)[:, :, 0]
    spread = np.sqrt(np.cumsum(((both - both.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)))
    something = (spread > 1e-12 * max(1.0, float(np.abs(both).max())))[:, None]
    sums = np.abs(np.cumsum(differences, axis=0))
    return np.round(np.divide(sums, spread[:, None], out=np.zeros_like(sums), where=something), _DECIMALS)


def _exceeding(statistics: dict[Any, Array], design: Design) -> list[Any]:
    """The pairs that are different, the clearest first."""
    left, found = dict(statistics), []
    while left and (look := _first_excess(np.max(list(left.values()), axis=0), design)) is not None:
        found.append(max(left, key=lambda pair: left[pair][look, 0]))
        del left[found[-1]]
    return found


def _first_excess(largest: Array, design: Design) -> int | None:
    """The look, from 0, at which the observed one of (k, R) statistics exceeds its bound; ``None`` if none does."""
    n_permutations = largest.shape[1]
    inside = np.ones(n_permutations, dtype=bool)
    for look, values in enumerate(largest):
        allowed = math.floor(design.spent(look + 1) * n_permutations + 1e-9)
        left = allowed - int((~inside).sum())
        bound = np.sort(values[inside])[::-1][left]
        if values[0] > bound:
            return look
        inside &= values <= bound
    return None


def _decision(pair: tuple[str, str], state: State, looks: int, scores: Mapping[str, Array], design: Design) -> Decision:
    n_used = looks * design.size
    means = [float(scores[label][:n_used].mean()) if looks else math.nan for label in pair]
    first, second = pair if not means[1] > means[0] else pair[::-1]
    return Decision(first, second, state, looks, abs(means[0] - means[1]))


def seeds_to_resolve(improvement: float, n_pairs: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """About how many seeds of each algorithm show a difference of a given size with probability ``power``.

        n = (z_{1 - alpha / 2 m} + z_power)^2 / (6 (P(A > B) - 1/2)^2)

    Noether (1987, Sample Size Determination for Some Common Nonparametric Tests), for the test of Mann and Whitney at
    one look, alpha being divided by the number of pairs m. An estimate from an estimate: of few runs, P(A > B) is far
    from known, and large by chance where it is what made one look.

    :param improvement: P(A > B)
    :return: a whole number; infinite if neither is better
    """
    effect = abs(improvement - 0.5)
    if effect < 1e-9:
        return math.inf
    quantiles = stats.norm.ppf(1 - alpha / (2 * n_pairs)) + stats.norm.ppf(power)
    return math.ceil(float(quantiles**2 / (6 * effect**2)))
