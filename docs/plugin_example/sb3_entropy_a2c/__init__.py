"""A2C whose entropy coefficient is the multiplier of a constraint (Haarnoja et al. 2018, section 5, does this for SAC),

    maximise E[ A_t log pi(a_t|s_t) ]   subject to   E[ H(pi(.|s_t)) ] >= H*.

The Lagrangian E[ A log pi ] + alpha (E[ H ] - H*) is A2C's own objective with alpha as ``ent_coef``. Its multiplier
alpha >= 0 takes projected gradient steps,

    alpha <- max( 0, alpha + eta (H* - E[ H ]) ):

the bonus grows while the policy is more certain than H* allows and returns to nothing once it no longer is.
"""

from typing import Any

from stable_baselines3 import A2C

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus


# Step 1 of 3: the class. Its own arguments have names and defaults; all others go on to A2C.
class EntropyA2C(A2C):
    """A2C that keeps the mean entropy of its policy from falling below a target.

    :param target_entropy: H*, in nats; at most log(n) for n discrete actions
    :param dual_rate: eta, the rate at which the coefficient follows
    :param a2c_arguments: all other arguments of :class:`stable_baselines3.A2C`; ``ent_coef`` is alpha at the start
    """

    def __init__(
        self, policy: Any, env: Any, target_entropy: float = 0.5, dual_rate: float = 1e-3, **a2c_arguments: Any
    ):
        if not dual_rate >= 0:
            raise ValueError(f"dual_rate={dual_rate}: must be at least 0")
        self.target_entropy = target_entropy
        self.dual_rate = dual_rate
        super().__init__(policy, env, **a2c_arguments)

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 100,
        tb_log_name: str = "EntropyA2C",  # the class name, as everywhere in Stable-Baselines3
        *arguments: Any,
        **named: Any,
    ) -> Any:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, *arguments, **named)

    def train(self) -> None:
        """One step of A2C, then one of alpha."""
        super().train()
        entropy = -self.logger.name_to_value["train/entropy_loss"]  # of the batch: A2C has just recorded it
        self.ent_coef = max(0.0, self.ent_coef + self.dual_rate * (self.target_entropy - entropy))
        self.logger.record("train/ent_coef", self.ent_coef)


# Step 2 of 3: the record, with the search space for tuning. Its names are arguments of the class or of A2C.
SPEC = AlgorithmSpec(
    EntropyA2C,
    family="on_policy",
    paper="Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, section 5, arXiv:1812.05905",
    space={
        "target_entropy": Float(0.0, 0.7),
        "dual_rate": Float(1e-5, 1e-2, log=True),
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "n_steps": Int(5, 128, log=True),
        "gamma": OneMinus(1e-3, 0.1),
        "policy_kwargs.net_arch": Choice([64], [64, 64]),
    },
    # What `sb3-pg gradlab --algo entropy_a2c` measures: without a bonus, a step is one along A2C's gradient.
    claims=(
        GradientClaim(
            "no bonus",
            {"target_entropy": -1.0},
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
        ),
    ),
)
