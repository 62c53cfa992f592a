"""``python -m benchmarks.svg0_update``: SVG(0)'s update against SB3's DDPG, in one process, interleaved; CPU time.

Both learn from the same 5000 transitions of Pendulum-v1 with one critic and one torch thread. With two critics SVG(0)
stands against TD3 with a policy delay of 1, for information. Exit 1 if a target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule

from sb3_pg_ext.algorithms.svg0 import SVG0

TRANSITIONS, UPDATES = 5_000, 100
#: (widths, batch) -> how many times DDPG's updates per second are wanted.
TARGETS = {((64, 64), 64): 2.0, ((256, 256), 256): 1.3}


def model(cls: type[Any], widths: tuple[int, ...], batch: int, n_critics: int, **kwargs: Any) -> Any:
    """A model that has collected, and not yet learned."""
    policy_kwargs: dict[str, Any] = {"net_arch": list(widths)}
    if cls is not DDPG:
        policy_kwargs["n_critics"] = n_critics
    options: dict[str, Any] = {"batch_size": batch, "learning_starts": TRANSITIONS, "learning_rate": 1e-3}
    made = cls("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, seed=0, device="cpu", **options, **kwargs)
    made.learn(TRANSITIONS)
    made.set_logger(Logger(None, []))
    made.lr_schedule = FloatSchedule(1e-3)
    return made


def updates_per_second(model: Any) -> float:
    start = time.process_time()
    model.train(gradient_steps=UPDATES, batch_size=model.batch_size)
    return UPDATES / (time.process_time() - start)


def compare(models: dict[str, Any], n_rounds: int) -> dict[str, list[float]]:
    """Updates per second of each round, all in turn, after two rounds to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(n_rounds + 2):
        for name, each in models.items():
            rates[name].append(updates_per_second(each))
    return {name: values[2:] for name, values in rates.items()}


def report(what: str, rates: dict[str, list[float]], base: str, target: float | None) -> bool:
    """Print medians and the median ratio to ``base``; whether the target is met."""
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[base], strict=True))
        print(f"{what:30s} {name:5s} {statistics.median(values):7.0f} updates/s   {ratio:.2f} of {base}")
    if target is None:
        return True
    print(f"{what:30s} target {target}: {'met' if ratio >= target else 'MISSED'}")
    return ratio >= target


def main(n_rounds: int = 15) -> int:
    th.set_num_threads(1)
    met = True
    for (widths, batch), target in TARGETS.items():
        what = f"{list(widths)}, batch {batch}"
        pair = {"DDPG": model(DDPG, widths, batch, 1), "SVG0": model(SVG0, widths, batch, 1)}
        met &= report(f"{what}, 1 critic", compare(pair, n_rounds), "DDPG", target)
        pair = {"TD3": model(TD3, widths, batch, 2, policy_delay=1), "SVG0": model(SVG0, widths, batch, 2)}
        report(f"{what}, 2 critics", compare(pair, n_rounds), "TD3", None)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
