"""How the cost of REINFORCE grows with the number of envs and the width of the net, and what memory it takes."""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks.interleaved import Lane, rounds
from benchmarks.throughput import native, trained
from sb3_pg_ext import make

ENVS = (1, 4, 16, 64, 256, 1024)
WIDTHS = (16, 64, 256, 512)


def lane(n_envs: int, width: int) -> Lane:
    model = make(
        "reinforce", native("CartPole-v1", n_envs), seed=0, device="cpu", policy_kwargs={"net_arch": [width, width]}
    )
    return Lane(f"{n_envs} envs, {width}x{width}", trained(model, max(4_000, 400 * n_envs)))


def peak_memory(n_envs: int) -> tuple[float, int]:
    """Peak of python's and numpy's allocations in MB during training, and the steps of one rollout at least."""
    model = make("reinforce", native("CartPole-v1", n_envs), seed=0, device="cpu")
    model.learn(1)
    gc.collect()
    tracemalloc.start()
    model.learn(2 * 128 * n_envs)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak, 128 * n_envs


def scaling(n_rounds: int) -> None:
    """Print CPU microseconds a step, training included."""
    lanes = [lane(n, 64) for n in ENVS] + [lane(64, w) for w in WIDTHS]
    rounds(lanes, n_rounds)
    print("REINFORCE on the native CartPole-v1, CPU microseconds per env step, training included")
    for one in lanes:
        print(f"    {one.name:22s} {1e6 / one.median:8.2f} us")
    print("Memory of the rollout (numpy and python allocations; torch's activations are not in it)")
    for n in (8, 64, 256):
        peak, steps = peak_memory(n)
        print(f"    {n:4d} envs: {peak:7.1f} MB for rollouts of {steps:,} steps or more")
