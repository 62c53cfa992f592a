"""How much does each setting matter around good ones? One at a time, over seeds, by an ordinary comparison.

    python tuning/sensitivity.py --algo reinforce --env CartPole-v1 -n 50000 --seeds 5
    python tuning/sensitivity.py --algo npg --env CartPole-v1 -n 20000 --setting target_kl gamma --points 3

From the settings of zoo_configs (else the defaults), each setting in turn takes ``--points`` values spread over its
range in the search space, the others stay. What makes no difference to these is left out. All runs go into one study,
which ``sb3-pg report`` shows; the table here sets, for each setting, its best and its worst value side by side. Options
that are not listed here go to ``sb3-pg compare``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.console import console, table
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.summary import number, summarise
from sb3_pg_ext.experiments.values import as_text
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.spec import Choice, Dimension, Float, Int, OneMinus, When, is_used, nest

CENTRE = "centre"


@dataclass(frozen=True)
class Point:
    """One setting at one value.

    :param text: the value, as it is typed
    :param label: of the variant that has it; equal runs have one label, those of the centre its own
    """

    setting: str
    text: str
    label: str


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


def points_of(algo: str, env_id: str, settings: Sequence[str], points: int, use_zoo_config: bool = True) -> list[Point]:
    """Each of ``settings`` at its values, one at a time.

    Those that the centre does not use, or that have no other value than its own, are left out.
    """

    def run(**changed: Any) -> RunSpec:
        # Seeds, budget and protocol have no part in whether two runs are the same.
        variant = Variant("", algo, nest(changed))
        return resolve(
            variant,
            env_id,
            seeds=Seeds(0, 0, 0),
            total_steps=1,
            protocol=Protocol(1),
            use_zoo_config=use_zoo_config,
        )

    space, centre = registry.get(algo).space, run()
    labels, found = {centre.key: CENTRE}, []
    for name in settings:
        if is_used(space[name], centre.hyperparameters):
            keys = {as_text(value): run(**{name: value}).key for value in spread(space[name], points)}
            if set(keys.values()) != {centre.key}:
                found += [Point(name, text, labels.setdefault(key, f"v{len(labels)}")) for text, key in keys.items()]
    return found


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
    add("--no-zoo-config", action="store_true", help="start from the defaults, also where there are tuned settings")
    args, others = parser.parse_known_args()
    if args.points < 2:
        parser.error(f"--points {args.points}: at least 2 are needed")
    try:
        space = registry.get(args.algo).space
    except registry.UnknownAlgorithmError as error:
        parser.error(str(error))
    unknown = [name for name in args.setting if name not in space]
    if unknown:
        parser.error(f"--setting {' '.join(unknown)}: {args.algo} searches {', '.join(space)}")
    wanted = list(dict.fromkeys(args.setting or space))
    points = points_of(args.algo, args.env, wanted, args.points, not args.no_zoo_config)
    unused = [name for name in wanted if name not in {point.setting for point in points}]
    if unused:
        print(f"Left out, unused at the centre or with no other value: {', '.join(unused)}", flush=True)
    if not points:
        return 2
    folder = args.folder or Path("results", f"sensitivity_{args.algo}_{args.env}".replace(":", "."))
    done = subprocess.run([*compare(args, points), "-f", str(folder), *others], check=False)
    if done.returncode in (0, 1):
        show(folder, points)
    return done.returncode


def compare(args: argparse.Namespace, points: Sequence[Point]) -> list[str]:
    """The command that carries the runs out."""
    # A label of its own for each variant: commas and equals signs of values have no place in it.
    texts: dict[str, str] = {}
    for point in points:
        if point.label != CENTRE:
            texts.setdefault(point.label, f"{point.setting}={point.text}")
    variants = [f"{label}={args.algo}:{text}" for label, text in texts.items()]
    words = ["--algo", f"{CENTRE}={args.algo}", *variants, "--env", args.env, "-n", args.n_timesteps]
    words += ["--seeds", args.seeds, *(["--no-zoo-config"] if args.no_zoo_config else [])]
    return [str(Path(sys.executable).with_name("sb3-pg")), "compare", *words]


def show(folder: Path, points: Sequence[Point]) -> None:
    """The table, the setting that matters most first."""
    with Store(folder / FILE_NAME, read_only=True) as store:
        scores = {s.label: s.final.point for s in summarise(store.records()) if s.final is not None}
    centre = scores.get(CENTRE, float("nan"))
    by_setting: dict[str, dict[str, float]] = {}
    for point in points:
        if point.label in scores:
            by_setting.setdefault(point.setting, {})[point.text] = scores[point.label]
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
