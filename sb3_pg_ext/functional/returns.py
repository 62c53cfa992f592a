"""Returns, advantages and baselines, vectorised over (T, N).

Notation: T steps, N columns. A column is one env slot (several episodes one after another) or one episode, padded to
the longest. ``continues[t, n]`` is 1 where step t + 1 belongs to the same episode as step t and 0 where the episode
ends or is cut at t. ``next_values[t, n]`` is the value of the state that step t led to: 0 after a terminal step, V of
the *terminal* observation (not of the reset one) after a time-out.

All functions return new tensors of the inputs' dtype and do not back-propagate into values on purpose: detach them.
"""

from __future__ import annotations

import torch as th
from torch import Tensor


def linear_recurrence(increments: Tensor, factors: Tensor) -> Tensor:
    """Solve x_t = b_t + a_t x_{t+1} with x_T = 0 for all t at once.

    Two neighbouring steps compose to one of the same form, x_t = (b_t + a_t b_{t+1}) + (a_t a_{t+1}) x_{t+2}; repeated
    doubling covers T steps in log2(T) passes over whole arrays (Hillis & Steele, 1986) instead of T small ones.

    :param increments: b, (T, N)
    :param factors: a, (T, N)
    :return: x, (T, N)
    """
    x, a = increments.clone(), factors.clone()
    stride = 1
    while stride < len(x):
        x[:-stride] = x[:-stride] + a[:-stride] * x[stride:]
        a[:-stride] = a[:-stride] * a[stride:]
        stride *= 2
    return x


def reward_to_go(rewards: Tensor, continues: Tensor, gamma: float, next_values: Tensor | None = None) -> Tensor:
    """G_t = r_t + gamma (c_t G_{t+1} + (1 - c_t) V(s_{t+1})).

    :param rewards: r, (T, N)
    :param continues: c, (T, N) of 0 and 1
    :param gamma: discount per step, in [0, 1]
    :param next_values: V(s_{t+1}), (T, N), read at cuts only; None: nothing follows a cut (Monte Carlo without critic)
    :return: G, (T, N)
    """
    if next_values is None:
        return linear_recurrence(rewards, gamma * continues)
    return td_lambda(rewards, continues, next_values, gamma, lam=1.0)


def total_return(rewards: Tensor, continues: Tensor, gamma: float, next_values: Tensor | None = None) -> Tensor:
    """R(tau) = G_0 of the episode that step t belongs to, for every t.

    Arguments and result as in :func:`reward_to_go`.
    """
    to_go = reward_to_go(rewards, continues, gamma, next_values)
    steps = th.arange(len(rewards), device=rewards.device).unsqueeze(1)
    return to_go.gather(0, steps - episode_time(continues))


def n_step_return(rewards: Tensor, continues: Tensor, next_values: Tensor, gamma: float, n: int) -> Tensor:
    """G^(n)_t = r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n V(s_{t+n}), cut short where the episode or the window ends.

    By the recursion G^(n)_t = r_t + gamma (c_t G^(n-1)_{t+1} + (1 - c_t) V(s_{t+1})), where
    G^(1)_t = r_t + gamma V(s_{t+1}).

    :param n: number of rewards, at least 1
    :return: G^(n), (T, N)
    :raises ValueError: n < 1
    """
    if n < 1:
        raise ValueError(f"n={n}: an n-step return needs n >= 1")
    one_step = rewards + gamma * next_values
    returns = one_step
    for _ in range(min(n, len(rewards)) - 1):
        longer = rewards[:-1] + gamma * (continues[:-1] * returns[1:] + (1 - continues[:-1]) * next_values[:-1])
        returns = th.cat([longer, one_step[-1:]])
    return returns


def td_lambda(rewards: Tensor, continues: Tensor, next_values: Tensor, gamma: float, lam: float) -> Tensor:
    """G^lam_t = r_t + gamma ((1 - lam c_t) V(s_{t+1}) + lam c_t G^lam_{t+1})   (Sutton & Barto 2018, eq. 12.18).

    At a cut (c_t = 0), and at the end of the window, all weight falls on V(s_{t+1}).

    :param next_values: V(s_{t+1}), (T, N)
    :param lam: lambda in [0, 1]; 0 is TD(0), 1 the Monte-Carlo return
    :return: G^lam, (T, N)
    """
    trace = lam * _within_window(continues)
    return linear_recurrence(rewards + gamma * (1 - trace) * next_values, gamma * trace)


def gae(rewards: Tensor, continues: Tensor, values: Tensor, next_values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = delta_t + gamma lam c_t A_{t+1},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t).

    Schulman et al. 2016, eq. 16.

    :param values: V(s_t), (T, N)
    :param next_values: V(s_{t+1}), (T, N)
    :param lam: lambda in [0, 1]; 1 gives reward_to_go - values
    :return: A, (T, N); A + values = td_lambda(...)
    """
    deltas = rewards + gamma * next_values - values
    return linear_recurrence(deltas, gamma * lam * _within_window(continues))


def successor_values(values: Tensor, continues: Tensor, cut_values: Tensor) -> Tensor:
    """V(s_{t+1}) for every step: the next row of ``values`` inside an episode, ``cut_values`` where it ends or is cut.

    :param values: V(s_t), (T, N)
    :param continues: (T, N)
    :param cut_values: (T, N): V of what follows a time-out or the end of the window, 0 at terminal steps
    :return: (T, N)
    """
    following = th.cat([values[1:], th.zeros_like(values[:1])])
    inside = _within_window(continues)
    return inside * following + (1 - inside) * cut_values


def episode_time(continues: Tensor, elapsed: Tensor | None = None) -> Tensor:
    """Number of steps since the start of the episode, (T, N) int64.

    :param elapsed: steps that the episodes of the first row had taken before it, (N,); None: it starts them
    """
    steps = th.arange(len(continues), device=continues.device).unsqueeze(1).expand(continues.shape)
    begun_inside = th.cat([th.zeros_like(continues[:1], dtype=th.bool), continues[:-1] == 0])
    return steps - th.where(begun_inside, steps, 0 if elapsed is None else -elapsed).cummax(0).values


def leave_one_out_mean(psi: Tensor, live: Tensor) -> Tensor:
    """b_{t,i} = mean of Psi_{t,j} over the other episodes j that are still alive at their step t; 0 if there is none.

    Leaving episode i out makes b independent of its actions, so the estimate stays unbiased.

    :param psi: Psi, (T, M): column i is episode i from its own start, padded
    :param live: (T, M) bool: step t exists in episode i
    :return: b, (T, M)
    """
    return leave_one_out_weighted_mean(psi, live.to(psi.dtype))


def leave_one_out_weighted_mean(psi: Tensor, weights: Tensor) -> Tensor:
    """b_{t,i} = sum_{j != i} w_{t,j} Psi_{t,j} / sum_{j != i} w_{t,j}; 0 where no weight is left.

    With w the squared score norm this estimates ``b*_t = E[|score_t|^2 Psi_t] / E[|score_t|^2]``, the constant that
    minimises the variance of step t's term score_t (Psi_t - b_t)   (Greensmith, Bartlett & Baxter 2004, theorem 8, for
    one constant a step). In an episode of several steps the covariances between the terms come on top.

    :param psi: Psi, (T, M), one episode a column
    :param weights: w >= 0, (T, M), 0 where the episode has ended
    :return: b, (T, M)
    """
    others = _sum_of_others(weights)
    return th.where(others > 0, _sum_of_others(weights * psi) / th.where(others > 0, others, 1), 0)


def _sum_of_others(x: Tensor) -> Tensor:
    """sum_{j != i} x_{t,j}, (T, M), from running sums: total minus own would cancel where one entry dominates."""
    nothing = th.zeros_like(x[:, :1])
    before = th.cat([nothing, x[:, :-1]], 1).cumsum(1)
    after = th.cat([x[:, 1:], nothing], 1).flip(1).cumsum(1).flip(1)
    return before + after


def standardised(advantages: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(A - mean A) / (s.d. of A + epsilon) over all entries; a single entry is only centred."""
    centred = advantages - advantages.mean()
    return centred / (advantages.std() + epsilon) if advantages.numel() > 1 else centred


def _within_window(continues: Tensor) -> Tensor:
    """``continues`` with 0 in the last row: nothing after the window is known."""
    return th.cat([continues[:-1], th.zeros_like(continues[-1:])])
