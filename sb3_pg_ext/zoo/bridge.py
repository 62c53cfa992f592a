"""The registry in the tables of rl_zoo3."""

from __future__ import annotations

import importlib
from typing import Any

from sb3_pg_ext import registry
from sb3_pg_ext.zoo.arguments import converter, sampler
from sb3_pg_ext.zoo.manager import BridgedExperiment


def install() -> None:
    """Give the rl_zoo3 of this process every algorithm of the registry, with its search space and settings.

    Plug-ins and algorithms that were registered by :func:`sb3_pg_ext.register` before are among them. What rl_zoo3 has
    by itself stays as it is. Calling it again adds what has been registered since.

    :raises ImportError: rl_zoo3 is not installed
    """
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    add_algorithms(ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)
    command: Any = importlib.import_module("rl_zoo3.train")
    manager = command.ExperimentManager
    if not issubclass(manager, BridgedExperiment):
        command.ExperimentManager = type("ExperimentManager", (BridgedExperiment, manager), {})


def add_algorithms(algos: dict[str, Any], samplers: dict[str, Any], converters: dict[str, Any]) -> None:
    """Fill the gaps of rl_zoo3's tables, in place.

    :param algos: name -> class; one class may have several names, such as ``ppo_lstm`` and ``recurrent_ppo``
    :param samplers: name -> from trial, number of actions, number of envs and further arguments to keyword arguments
    :param converters: name -> from the stored parameters of a trial to keyword arguments
    """
    for key, spec in registry.available().items():
        cls = algos.setdefault(key, spec.cls)
        if cls is not spec.cls:
            continue  # rl_zoo3, or whoever came before, means something else by this name
        # A sampler and a converter belong together: both of another name of the class, or both of the SPEC.
        tuned = [name for name, other in algos.items() if other is cls and name in samplers and name in converters]
        if key not in tuned:
            samplers[key] = samplers[tuned[0]] if tuned else sampler(spec)
            converters[key] = converters[tuned[0]] if tuned else converter(spec)
