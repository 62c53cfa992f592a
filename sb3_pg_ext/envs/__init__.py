"""Testbeds whose optimum, objective, gradient and Fisher matrix are known exactly.

========================== =================================================================================
id                         problem
========================== =================================================================================
LQR-v0                     linear dynamics, quadratic cost, any dimension; differentiable
Garnet-v0                  a random finite Markov decision process
Bandit-v0                  arms (Discrete), or a polynomial of the action (Box, differentiable)
ShortCorridor-v0           Sutton & Barto, example 13.1: three states that look alike
PointMass-v0               a mass on a plane pushed to the origin; differentiable
DifferentiablePendulum-v0  the swing-up of Pendulum-v1, step for step; differentiable
========================== =================================================================================

Each comes as a single environment (``gymnasium.make``) and as one batch of N copies (``gymnasium.make_vec``); keyword
arguments of the problem are passed to either. The answers are in :mod:`sb3_pg_ext.envs.oracles`.
"""

import gymnasium

ENV_CLASSES = {
    "LQR-v0": ("lqr:LQREnv", "lqr:LQRVectorEnv"),
    "Garnet-v0": ("garnet:GarnetEnv", "garnet:GarnetVectorEnv"),
    "Bandit-v0": ("bandit:bandit_env", "bandit:bandit_vector_env"),
    "ShortCorridor-v0": ("short_corridor:ShortCorridorEnv", "short_corridor:ShortCorridorVectorEnv"),
    "PointMass-v0": ("point_mass:PointMassEnv", "point_mass:PointMassVectorEnv"),
    "DifferentiablePendulum-v0": ("pendulum:PendulumEnv", "pendulum:PendulumVectorEnv"),
}


def register_envs() -> None:
    """Register the ids of :data:`ENV_CLASSES` with gymnasium; an id that is already there is left alone.

    Nothing else is imported until an environment is made. Time limits are part of the problems (``horizon=``), so that
    the oracles and the environments cannot disagree on them: no ``TimeLimit`` wrapper is added.
    """
    for name, (single, vector) in ENV_CLASSES.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}.{single}", vector_entry_point=f"{__name__}.{vector}")
