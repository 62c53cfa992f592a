"""The ``sb3-pg`` command. Each module of ``commands`` is one of its words."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import sb3_pg_ext
from sb3_pg_ext.experiments.tracking import with_commas

COMMANDS = {
    "compare": "compare algorithms over environments and seeds; restartable",
    "study": "state of a comparison, also while it runs; seeds still needed; export to tables; import of log folders",
    "report": "write table, figure and report.md of a comparison again, finished or not",
    "tune": "search for the best settings, with several seeds a trial; restartable, on one machine or many",
    "train": "train one model, with the folders and spellings of rl_zoo3",
    "eval": "evaluate a saved model",
    "gradlab": "measure every gradient estimator against the exact gradient",
    "algos": "list the algorithms, or everything about one",
}
_MODULES = {"eval": "evaluate"}
_EPILOG = """\
first steps:
  sb3-pg algos                                             what there is
  sb3-pg compare --algo reinforce ppo --env CartPole-v1 --seeds 3 -n 20000
  sb3-pg train --algo ppo --env CartPole-v1 -n 50000       a single model, in logs/ppo/CartPole-v1_1
  sb3-pg eval logs/ppo/CartPole-v1_1                       how good it is
  sb3-pg tune --algo ppo --env CartPole-v1 -n 20000        search for better settings
  sb3-pg gradlab                                           are the gradients right?

Each command explains itself: sb3-pg compare --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sb3-pg`` with ``argv``, by default that of the process.

    :return: exit status: 0 all went well, 1 a run failed, 2 the command is wrong, 130 stopped by Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(with_commas(argv))
    try:
        _look_here_too()
        return args.run(args)
    except KeyboardInterrupt:
        print(f"sb3-pg {args.command}: stopped", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        print(f"sb3-pg {args.command}: {error}", file=sys.stderr)
        return 2


def _look_here_too() -> None:
    """Modules of the current folder can be imported, by workers too, which take over the search path.

    They come after all that is installed, so that none of it is hidden by a file of the same name.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sb3-pg",
        description="Train and compare policy-gradient algorithms with Stable-Baselines3.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sb3_pg_ext {sb3_pg_ext.__version__}")
    words = parser.add_subparsers(dest="command", required=True, metavar="command")
    for word, summary in COMMANDS.items():
        module = importlib.import_module(f"{__package__}.commands.{_MODULES.get(word, word)}")
        child = words.add_parser(
            word,
            help=summary,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    return parser


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is all that a user needs."""
    import sqlite3

    from sb3_pg_ext.registry import UnknownAlgorithmError

    return (ValueError, OSError, ImportError, UnknownAlgorithmError, sqlite3.OperationalError)


if __name__ == "__main__":
    sys.exit(main())
