"""What a policy says of a batch, kept as tensors.

An SB3 policy has one distribution object, which every call overwrites: the old one and the new one would be the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch as th
from torch import Tensor

from sb3_pg_ext.bases.actor_jacobian import family_of, parameters_of
from sb3_pg_ext.bases.on_policy import log_prob_and_entropy
from sb3_pg_ext.functional.families import Family
from sb3_pg_ext.rollout.episodes import Batch, Rollout


class Behaviour(NamedTuple):
    """pi(.|s) at B steps.

    :param log_prob: log pi(a|s), (B,)
    :param entropy: of pi(.|s), (B,)
    :param family: the family of distributions
    :param eta: the parameters of pi(.|s) in it, (B, D)
    """

    log_prob: Tensor
    entropy: Tensor
    family: Family
    eta: Tensor

    def kl(self, new: Behaviour, index: Tensor | slice = slice(None)) -> Tensor:
        """KL(self || new), (b,), where ``new`` is of the steps ``index`` of this batch."""
        return self.family.kl(self.eta[index], new.eta)


def behaviour(policy: Any, batch: Rollout | Batch) -> Behaviour:
    """The policy at the steps of ``batch``, with its graph.

    :param policy: an SB3 actor-critic policy
    :raises TypeError: its action distribution has no KL divergence in closed form
    """
    distribution = policy.get_distribution(batch.observations)
    log_prob, entropy = log_prob_and_entropy(distribution, batch.actions)
    return Behaviour(log_prob, entropy, family_of(distribution), parameters_of(distribution))


@th.no_grad()
def acting_behaviour(policy: Any, batch: Rollout | Batch) -> Behaviour:
    """The same without gradient, as the policy acts: dropout and batch normalisation are in evaluation mode."""
    policy.set_training_mode(False)
    acting = behaviour(policy, batch)
    policy.set_training_mode(True)
    return acting
