"""PPO with an LSTM before the policy and the value (Hochreiter and Schmidhuber 1997; Schulman et al. 2017), implemented
by sb3-contrib. The objective of PPO with the state replaced by a summary of all observations of the episode so far,

    pi(a_t|h_t), V(h_t),   h_t = LSTM(o_t, h_{t-1}),   h_{-1} = 0 at the start of an episode.

``predict`` takes and returns the LSTM state and needs ``episode_start``.
"""

from sb3_contrib import RecurrentPPO

from sb3_pg_ext.algorithms import ppo
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Int

SPEC = AlgorithmSpec(
    RecurrentPPO,
    family="on_policy",
    paper="Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347; with an LSTM",
    policies=("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy"),
    tags=("recurrent",),
    space={
        **ppo.SPEC.space,
        "policy_kwargs.lstm_hidden_size": Int(5, 8, power=2),
        "policy_kwargs.enable_critic_lstm": Choice(True, False),
    },
)
