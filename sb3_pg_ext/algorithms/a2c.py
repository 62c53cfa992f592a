"""A2C, advantage actor-critic (Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning"),
implemented by Stable-Baselines3. One gradient step on each batch of N envs times ``n_steps`` steps, maximising

    E[ A_t log pi(a_t|s_t) + c_H H(pi(.|s_t)) ] - c_V E[ (V(s_t) - G_t)^2 ],   A_t = G_t - V(s_t) held fixed,

with G_t the lambda-return (``gae_lambda=1``: n steps, then V).
"""

from stable_baselines3 import A2C

from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus, When

SPEC = AlgorithmSpec(
    A2C,
    family="on_policy",
    paper="Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783",
    space={
        "learning_rate": Float(1e-5, 1e-2, log=True),
        "n_steps": Int(5, 256, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "gae_lambda": Float(0.8, 1.0),
        "ent_coef": Choice(0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "normalize_advantage": Choice(False, True),
        "use_rms_prop": Choice(True, False),
        "rms_prop_eps": When("use_rms_prop", (True,), Float(1e-8, 1e-3, log=True)),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim(
            "one step",
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
        ),
    ),
)
