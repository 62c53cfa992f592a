"""How much does each setting matter around good ones? One at a time, over seeds, by an ordinary comparison.

    python tuning/sensitivity.py --algo reinforce --env CartPole-v1 -n 50000 --seeds 5
    python tuning/sensitivity.py --algo npg --env CartPole-v1 -n 20000 --setting target_kl gamma --points 3

From the settings of zoo_configs (else the defaults), each setting in turn takes ``--points`` values spread over its
range in the search space, the others stay. All runs go into one study, which ``sb3-pg report`` shows; the table here
sets, for each setting, its best and its worst value side by side.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.console import console, table
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.summary import number, summarise
from sb3_pg_ext.experiments.values import as_text
from sb3_pg_ext.spec import Choice, Dimension, Float, Int, OneMinus, When


def spread(dimension: Dimension, points: int) -> list[Any]:
    """``points`` values of a dimension, ends included; all of them for a choice."""
    match dimension:
        case When(dimension=inner):
            return spread(inner, points)
        case Choice(options):
            return list(options)
        case OneMinus(low, high):
            return [float(f"{1 - x:.6g}") for x in np.geomspace(low, high, points)]
        case Float(low, high, log):
            return [float(f"{x:.3g}") for x in (np.geomspace if log else np.linspace)(low, high, points)]
        case Int(low, high, log, power):
            exponents = (np.geomspace if log else np.linspace)(low, high, min(points, high - low + 1))
            values = dict.fromkeys(round(float(x)) for x in exponents)
            return [power**value if power else value for value in values]
    raise TypeError(f"{dimension!r} is not a dimension")


def variants(algo: str, settings: list[str], points: int) -> Iterator[tuple[str, str, str]]:
    """Setting, value and the variant that ``sb3-pg compare`` takes."""
    for name, dimension in registry.get(algo).space.items():
        if not settings or name in settings:
            for value in spread(dimension, points):
                yield name, as_text(value), f"{name}={as_text(value)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--algo", required=True)
    add("--env", required=True)
    add("-n", "--n-timesteps", required=True)
    add("--seeds", default="5")
    add("--points", type=int, default=3, help="values of each setting (3)")
    add("--setting", nargs="+", default=[], metavar="NAME", help="only these settings (all of the search space)")
    add("-f", "--folder", type=Path, help="results/sensitivity_<algo>_<env>")
    args, others = parser.parse_known_args()
    folder = args.folder or Path("results", f"sensitivity_{args.algo}_{args.env}")
    unknown = set(args.setting) - set(registry.get(args.algo).space)
    if unknown:
        parser.error(f"--setting {sorted(unknown)}: {args.algo} searches {list(registry.get(args.algo).space)}")
    made = list(variants(args.algo, args.setting, args.points))
    # A label of its own for each variant: commas and equals signs of values have no place in it.
    labels = {f"v{index}": (name, value) for index, (name, value, _) in enumerate(made)}
    algos = [f"centre={args.algo}", *(f"v{index}={args.algo}:{text}" for index, (*_, text) in enumerate(made))]
    program, budget = Path(sys.executable).with_name("sb3-pg"), ("-n", args.n_timesteps, "--seeds", args.seeds)
    command = [program, "compare", "--algo", *algos, "--env", args.env, *budget, "-f", str(folder), *others]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 1):
        return done.returncode
    show(folder, labels)
    return done.returncode


def show(folder: Path, labels: dict[str, tuple[str, str]]) -> None:
    """The table, the setting that matters most first."""
    with Store(folder / FILE_NAME) as store:
        scores = {s.label: s.final.point for s in summarise(store.records()) if s.final is not None}
    centre = scores.get("centre", float("nan"))
    by_setting: dict[str, dict[str, float]] = {}
    for label, (name, value) in labels.items():
        if label in scores:
            by_setting.setdefault(name, {})[value] = scores[label]
    ranked = sorted(by_setting.items(), key=lambda item: min(item[1].values()) - max(item[1].values()))
    rows = []
    for name, found in ranked:
        best, worst = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
        reach = found[best] - found[worst]
        rows.append((name, number(reach), f"{best}: {number(found[best])}", f"{worst}: {number(found[worst])}"))
    title = f"Interquartile mean of the final return; {number(centre)} at the centre"
    console().print(table(title, ("setting", "best - worst", "best", "worst"), rows, right_from=1))


if __name__ == "__main__":
    sys.exit(main())
