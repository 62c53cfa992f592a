"""``python -m sb3_pg_ext.zoo``: the commands of rl_zoo3, with every algorithm of sb3_pg_ext and its plug-ins."""

from __future__ import annotations

import difflib
import importlib
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from sb3_pg_ext.experiments.values import SettingError

FUNCTIONS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot_train": "rl_zoo3.plots.plot_train",
    "all_plots": "rl_zoo3.plots.all_plots",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
}
SCRIPTS = ("record_video", "load_from_hub")  # modules that only run as a whole
WORDS = (*FUNCTIONS, *SCRIPTS)
NOT_HANDED_OVER = {
    "record_training": "it starts rl_zoo3 anew, without these algorithms: use record_video for each model",
    "push_to_hub": "it cannot be imported beside huggingface_sb3 3.2: use package_to_hub of huggingface_sb3",
    "benchmark": "it needs rl_zoo3's repository: use all_plots, or sb3-pg compare",
}
NEEDED = ("rl_zoo3", "requests", "seaborn")
HELP = """\
usage: python -m sb3_pg_ext.zoo COMMAND ...

The commands of rl_zoo3, with every algorithm of sb3_pg_ext and its plug-ins.

commands:
  train            train, or tune with -optimize; logs go to logs/<algo>/<env>_<n>
  enjoy            watch a trained model, or only score it with --no-render
  plot_train       learning curves of the training episodes
  all_plots        learning curves and a table of the evaluations
  plot_from_file   figures of what all_plots has saved
  record_video     an mp4 of a trained model
  load_from_hub    fetch a model from the Hugging Face Hub

first steps:
  python -m sb3_pg_ext.zoo train --algo reinforce --env CartPole-v1 -n 100000
  python -m sb3_pg_ext.zoo enjoy --algo reinforce --env CartPole-v1 -f logs --no-render
  python -m sb3_pg_ext.zoo train --algo npg --env CartPole-v1 -n 20000 -optimize --n-trials 20 \\
         --storage logs/study.log --study-name npg --no-optim-plots
  python -m sb3_pg_ext.zoo train --algo npg --env CartPole-v1 -n 100000 \\
         --storage logs/study.log --study-name npg --trial-id 7

Each command explains itself: python -m sb3_pg_ext.zoo train --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to rl_zoo3.

    :param argv: a command and its options, by default those of the process
    :return: exit status: 0 all went well, 2 the command is wrong or a package is missing
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    try:
        _hand_over(argv[0], argv[1:])
    except (_CommandError, SettingError) as error:
        print(f"sb3_pg_ext.zoo: {error}", file=sys.stderr)
        return 2
    return 0


class _CommandError(Exception):
    """Nothing can be handed over."""


def _hand_over(word: str, options: Sequence[str]) -> None:
    if word in NOT_HANDED_OVER:
        raise _CommandError(f"{word} of rl_zoo3 does not work here: {NOT_HANDED_OVER[word]}")
    if word not in WORDS:
        near = difflib.get_close_matches(word, WORDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise _CommandError(f"{word!r} is not a command.{hint} There are: {', '.join(WORDS)}")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise _CommandError(f'{", ".join(missing)} missing: pip install "sb3_pg_ext[zoo]"')
    from sb3_pg_ext.zoo.bridge import install

    install()
    sys.argv = [f"sb3_pg_ext.zoo {word}", *options]  # rl_zoo3 parses it
    if word in FUNCTIONS:
        getattr(importlib.import_module(FUNCTIONS[word]), word)()
    else:
        runpy.run_module(f"rl_zoo3.{word}", run_name="__main__")
