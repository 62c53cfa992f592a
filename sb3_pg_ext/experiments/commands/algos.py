"""List the algorithms that are installed, those of other packages included, or everything about one of them."""

from __future__ import annotations

import argparse
from typing import Any, get_args

EXAMPLES = """\
examples:
  sb3-pg algos                              all
  sb3-pg algos --action-space Discrete      those that fit an environment such as CartPole-v1
  sb3-pg algos ppo                          arguments, defaults, search space, environments with settings of their own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sb3_pg_ext.spec import ActionSpaceName, Family

    parser.add_argument("key", nargs="?", help="an algorithm, to see all of it")
    parser.add_argument("--family", choices=get_args(Family), help="only this family")
    parser.add_argument("--action-space", choices=get_args(ActionSpaceName), help="only those that act in it")


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext import registry
    from sb3_pg_ext.experiments.console import console

    terminal = console()
    if args.key is not None:
        _describe(args.key, registry.get(args.key), terminal)
    else:
        _list(registry.available(args.family, args.action_space), terminal)
    return 0


def _list(specs: dict[str, Any], terminal: Any) -> None:
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table

    rows = [
        [f"[bold]{key}[/]", spec.family.replace("_", " "), _spaces(spec), _package(spec), escape(spec.paper)]
        for key, spec in specs.items()
    ]
    terminal.print(table("", ["algorithm", "family", "action spaces", "from", "paper"], rows))
    terminal.print(f"{len(rows)} algorithms. Everything about one: sb3-pg algos KEY", markup=False)


def _spaces(spec: Any) -> str:
    from sb3_pg_ext.spec import ALL_ACTION_SPACES

    return "all" if set(spec.action_spaces) == set(ALL_ACTION_SPACES) else ", ".join(spec.action_spaces)


def _package(spec: Any) -> str:
    return spec.cls.__module__.partition(".")[0]


def _describe(key: str, spec: Any, terminal: Any) -> None:
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.settings import plain
    from sb3_pg_ext.experiments.values import as_text
    from sb3_pg_ext.experiments.zoo_configs import configured_environments

    about = [
        ["class", f"{spec.cls.__module__}.{spec.cls.__qualname__}"],
        ["family", spec.family.replace("_", " ")],
        ["action spaces", _spaces(spec)],
        ["policies", ", ".join(spec.policies)],
        ["paper", spec.paper],
        ["settings for", ", ".join(configured_environments(key)) or "no environment yet"],
    ]
    rows = [
        [name, as_text(plain(default)), _dimension_text(spec.space.get(name))]
        for name, default in spec.defaults.items()
    ]
    rows += [[name, "", _dimension_text(spec.space[name])] for name in spec.space if name not in spec.defaults]
    terminal.print(f"[bold]{key}[/]  {escape(spec.summary)}")
    terminal.print(table("", ["", ""], [list(map(escape, row)) for row in about]))
    terminal.print(table("", ["argument", "default", "searched in"], [list(map(escape, row)) for row in rows]))


def _dimension_text(dimension: Any) -> str:
    from sb3_pg_ext.spec import Choice, Float, Int, OneMinus, When

    match dimension:
        case None:
            return ""
        case Choice(options=options):
            return f"one of {', '.join(map(str, options))}"
        case OneMinus(low=low, high=high):
            return f"1 − x, x from {low:g} to {high:g}, log"
        case Int(low=low, high=high, power=int(base)):
            return f"{base}^{low} to {base}^{high}"
        case Float(low=low, high=high, log=log) | Int(low=low, high=high, log=log):
            return f"{low:g} to {high:g}{', log' if log else ''}"
        case When(name=name, values=values, dimension=inner):
            return f"{_dimension_text(inner)}; if {name} is {' or '.join(map(str, values))}"
    return str(dimension)
