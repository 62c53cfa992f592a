"""``python -m sb3_pg_ext.zoo``: the commands of rl_zoo3, with every algorithm of sb3_pg_ext and its plug-ins."""

from __future__ import annotations

import difflib
import importlib
import re
import runpy
import sys
import traceback
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
_CHECKING = ("rl_zoo3", "sb3_pg_ext", "stable_baselines3", "sb3_contrib", "gymnasium")
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
    except Exception as error:
        if not (_is_about_the_command(error) or _is_a_typed_module(error, argv)):
            raise
        print(f"sb3_pg_ext.zoo: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


class _CommandError(Exception):
    """Nothing can be handed over."""


def _is_about_the_command(error: Exception) -> bool:
    """Whether an error says what is wrong with the words and files of the command.

    That is one that these packages raise with a sentence before anything is learned. What an environment raises, numpy,
    or a model that learns, is looked for with the traceback.
    """
    if isinstance(error, (_CommandError, SettingError)):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "learn" in {frame.f_code.co_name for frame in frames} or not str(error):
        return False
    if isinstance(error, (SyntaxError, NameError)):  # rl_zoo3 evaluates values such as those of -params
        return "<string>" in (frames[-1].f_code.co_filename, getattr(error, "filename", None))
    checked = isinstance(error, (ValueError, AssertionError, FileNotFoundError)) or (
        isinstance(error, TypeError)
        and re.search("has no argument|unexpected keyword argument", str(error)) is not None
    )
    return checked and frames[-1].f_globals.get("__name__", "").partition(".")[0] in _CHECKING


def _is_a_typed_module(error: Exception, argv: Sequence[str]) -> bool:
    """Whether a module is missing that the command names, as after ``--gym-packages``."""
    return isinstance(error, ModuleNotFoundError) and any(f"{word}.".startswith(f"{error.name}.") for word in argv)


def _sentence(error: Exception) -> str:
    """What it says, in a line."""
    told = " ".join(str(error).split())
    evaluated = isinstance(error, (SyntaxError, NameError))
    return f"a K:V whose V is no value of Python, where text has quotes: {told}" if evaluated else told


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
