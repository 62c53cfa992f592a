"""The imagined return: what a policy earns in a model when all noise is given, as one differentiable map.

    a_t = pi(s_t, z_t),   s_{t+1} = f(s_t, a_t, zeta_t)

    R = sum_{t<H} d_t r(s_t, a_t, s_{t+1}) + d_H V(s_H),   d_0 = 1,   d_{t+1} = gamma (1 - p_t) d_t

with p_t the probability that step t ends the episode. Heess et al. 2015, Learning continuous control policies by
stochastic value gradients, differentiate this R in the policy's parameters; their algorithms differ in H and in where
the noise comes from:

* SVG(1): H = 1, z and zeta inferred from a real transition, V learned;
* SVG(inf): H is the length of a real trajectory, z and zeta inferred from it, no V;
* model-based policy gradient: any H, z and zeta drawn afresh.

Since the noise has the same distribution whatever the parameters are, grad E[R] = E[grad R].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import Tensor

#: States (B, S) and noise (B, A) -> actions (B, A).
Policy = Callable[[Tensor, Tensor], Tensor]
#: States (B, S), actions (B, A) and noise (B, k) -> next states (B, S).
Dynamics = Callable[[Tensor, Tensor, Tensor], Tensor]
#: States (B, S), actions (B, A) and next states (B, S) -> (B,).
OfTransition = Callable[[Tensor, Tensor, Tensor], Tensor]
#: States (B, S) -> (B,).
OfState = Callable[[Tensor], Tensor]


class Imagined(NamedTuple):
    """B imagined trajectories of H steps.

    :param returns: R, (B,)
    :param states: (H + 1, B, S)
    :param actions: (H, B, A)
    :param rewards: (H, B)
    :param discounts: d_0, ..., d_H, (H + 1, B)
    """

    returns: Tensor
    states: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor


def imagine(
    start: Tensor,
    policy: Policy,
    dynamics: Dynamics,
    reward: OfTransition,
    gamma: float,
    action_noise: Tensor,
    model_noise: Tensor,
    *,
    termination: OfTransition | None = None,
    value: OfState | None = None,
    live: Tensor | None = None,
) -> Imagined:
    """Follow the policy through the model for H steps, with the noise that is given.

    :param start: s_0, (B, S)
    :param policy: pi(s, z)
    :param dynamics: f(s, a, zeta)
    :param reward: r(s, a, s')
    :param gamma: discount per step
    :param action_noise: z, (H, B, A); its length is the horizon
    :param model_noise: zeta, (H, B, k)
    :param termination: p(s, a, s'), the probability that the episode ends with this step; None for never
    :param value: V, what follows the last state; None for nothing
    :param live: (H, B) bool; a step that is not live does not happen: the state stays, and nothing is earned
    """
    if len(action_noise) != len(model_noise):
        raise ValueError(f"action_noise is for {len(action_noise)} steps and model_noise for {len(model_noise)}")
    discount = start.new_ones(len(start))
    states, discounts = [start], [discount]
    actions, rewards = [], []
    for t, (z, zeta) in enumerate(zip(action_noise, model_noise, strict=True)):
        state = states[-1]
        action = policy(state, z)
        following = dynamics(state, action, zeta)
        earned = reward(state, action, following)
        ends = 0.0 if termination is None else termination(state, action, following)
        later = discount * (gamma * (1 - ends))
        if live is not None:
            following = th.where(live[t].unsqueeze(1), following, state)
            earned = th.where(live[t], earned, 0)
            later = th.where(live[t], later, discount)
        discount = later
        states.append(following)
        actions.append(action)
        rewards.append(earned)
        discounts.append(discount)
    earnings, weights = th.stack(rewards), th.stack(discounts)
    returns = (weights[:-1] * earnings).sum(0)
    if value is not None:
        returns = returns + discount * value(states[-1])
    return Imagined(returns, th.stack(states), th.stack(actions), earnings, weights)
