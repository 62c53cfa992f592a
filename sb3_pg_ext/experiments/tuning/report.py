"""The report of a tuning: one page that needs nothing else, and its figures as files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.chart import pictures, write
from sb3_pg_ext.experiments.tuning.figures import charts, importances
from sb3_pg_ext.experiments.tuning.overview import Overview
from sb3_pg_ext.experiments.tuning.page import page
from sb3_pg_ext.experiments.tuning.plan import Plan, plan_of
from sb3_pg_ext.experiments.tuning.storages import JOURNAL, close_storage, open_storage
from sb3_pg_ext.experiments.tuning.tuning import TUNING_FILE
from sb3_pg_ext.experiments.values import SettingError

PAGE, FIGURES = "report.html", "figures"
_SQLITE = "sqlite:///"
_NO_FIGURES = 'The figures need matplotlib: pip install "sb3_pg_ext[report]"'
_NO_PAGE = 'The page needs jinja2: pip install "sb3_pg_ext[report]"'


def write_report(study: Study, plan: Plan, folder: Path, tell: Callable[[str], None] = print) -> list[Path]:
    """Write ``report.html`` and ``figures/*.png`` from whatever the study holds so far, be it nothing.

    :param study: of ``plan``
    :param folder: of the tuning; ``choice`` and ``verdict`` in it are read if they are there
    :param tell: is told if an optional package is missing
    :return: what was written, the page first
    """
    overview = Overview(plan, study.get_trials(deepcopy=False))
    shares, note = importances(study, overview)
    notes = [note] if note and overview.shown else []
    shown = charts(overview, shares)
    written: list[Path] = []
    try:
        for chart in shown:
            write(chart, folder / FIGURES / f"{chart.name}.png")
            written.append(folder / FIGURES / f"{chart.name}.png")
        drawn = [pictures(chart) for chart in shown]
    except ModuleNotFoundError:
        tell(_NO_FIGURES)
        drawn, notes = [], [*notes, _NO_FIGURES]
    try:
        text = page(study, overview, folder, drawn, shares, notes, _dashboard(folder))
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        tell(_NO_PAGE)
        return written
    with atomic_write(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [folder / PAGE, *written]


def report_again(folder: Path, storage: str | None = None, tell: Callable[[str], None] = print) -> list[Path]:
    """:func:`write_report` for the tuning in ``folder``, whatever it is doing at the time.

    :param storage: URL of its trials; the one it was begun with by default
    :raises FileNotFoundError: there is no tuning in ``folder``, or its trials are not where they were
    :raises SettingError: the storage needs a password, or does not hold the study
    """
    if not (folder / TUNING_FILE).is_file():
        raise FileNotFoundError(f"{folder / TUNING_FILE} does not exist: there is no tuning in {folder}")
    known = json.loads((folder / TUNING_FILE).read_text(encoding="utf-8"))
    opened = open_storage(_found(storage or known["storage"], folder))
    try:
        study = _study(known["study_name"], opened)
        return write_report(study, plan_of(study.user_attrs), folder, tell)
    finally:
        close_storage(opened)


def _study(name: str, storage: BaseStorage) -> Study:
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise SettingError(
            f"there is no study {name!r} in the storage, only {', '.join(map(repr, names)) or 'nothing'}"
        )
    study = optuna.load_study(study_name=name, storage=storage)
    if "plan" not in study.user_attrs:
        raise SettingError(f"the study {name!r} has no plan: it is not one of sb3-pg tune")
    return study


def _found(storage: str, folder: Path) -> str:
    """``storage``, with the path of a file corrected if the file has moved along with ``folder``."""
    if ":***@" in storage:
        example = storage.replace(":***@", ":PASSWORD@")
        raise SettingError(f"the trials are in a database with a password: give --storage {example}")
    scheme = next((scheme for scheme in (JOURNAL, _SQLITE) if storage.startswith(scheme)), None)
    if scheme is None:
        return storage
    path = Path(storage.removeprefix(scheme))
    for candidate in (path, folder / path.name):
        if candidate.is_file():
            return f"{scheme}{candidate}"
    raise FileNotFoundError(f"{path} does not exist: give --storage URL if the trials are somewhere else now")


def _dashboard(folder: Path) -> str | None:
    """The command that shows the trials in a browser, if it is known where they are."""
    if not (folder / TUNING_FILE).is_file():
        return None
    return dashboard_command(json.loads((folder / TUNING_FILE).read_text(encoding="utf-8"))["storage"])


def dashboard_command(storage: str) -> str:
    """How ``optuna-dashboard`` is called: with the path of a journal file, or the URL of a database.

    :param storage: URL; a password that it leaves out is to be filled in
    """
    scheme, _, rest = storage.partition("://")
    if storage.startswith(JOURNAL):
        target = storage.removeprefix(JOURNAL)
    elif scheme in ("postgres", "postgresql"):
        target = f"postgresql+psycopg://{rest}"  # the driver has to be named
    else:
        target = storage
    return shlex.join(["optuna-dashboard", target.replace(":***@", ":PASSWORD@")])
