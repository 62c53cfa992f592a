"""``python -m benchmarks [--rounds 7] [--only throughput|scaling]``: print the tables; exit 1 if a target is missed."""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th

from benchmarks.scaling import scaling
from benchmarks.throughput import throughput


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=["throughput", "scaling"])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; medians are taken over them")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    met = True
    if arguments.only != "scaling":
        met = throughput(arguments.rounds)
    if arguments.only != "throughput":
        scaling(arguments.rounds)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
