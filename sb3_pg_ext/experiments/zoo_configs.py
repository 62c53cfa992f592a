"""Tuned settings per environment, from files in the zoo's format: ``zoo_configs/<key>.yml``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.values import SettingError, read_value

_PACKAGE = Path(__file__).resolve().parents[1]
IGNORED = frozenset({"n_timesteps"})  # the budget is a matter of the command


def config_folder() -> Path | None:
    """Where the files are: inside an installed package, or beside it in a checkout."""
    candidates = (_PACKAGE / "zoo_configs", _PACKAGE.parent / "zoo_configs")
    return next((folder for folder in candidates if folder.is_dir()), None)


def zoo_config(key: str, env_id: str, folder: Path | None = None) -> dict[str, Any]:
    """Settings of algorithm ``key`` for ``env_id``: the entry of that environment, else ``default``, else nothing.

    :param key: of the registry; the name of the file
    :param env_id: as registered; ``module:Name-v0`` is looked up as ``Name-v0``
    :param folder: where to look instead of :func:`config_folder`
    :return: plain data: constructor arguments and the zoo's own keys, such as ``n_envs`` and ``normalize``
    :raises SettingError: the file or an entry cannot be read
    """
    folder = folder or config_folder()
    entries = _entries(folder / f"{key}.yml") if folder else {}
    name = env_id.rpartition(":")[2]
    entry = entries.get(name, entries.get("default", {}))
    return {name: _plain(key, name, value) for name, value in entry.items() if name not in IGNORED}


def configured_environments(key: str, folder: Path | None = None) -> list[str]:
    """Environment ids that ``<key>.yml`` has an entry for, ``default`` left out."""
    folder = folder or config_folder()
    return [name for name in (_entries(folder / f"{key}.yml") if folder else {}) if name != "default"]


@cache
def _entries(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    if not path.is_file():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is not plain YAML: {error}") from None
    for env_id, entry in document.items() if isinstance(document, dict) else [("the file", None)]:
        if not isinstance(entry, dict):
            raise SettingError(f"{path}: {env_id!r} is not a table of settings")
    return document


def _plain(key: str, name: str, value: Any) -> Any:
    # The zoo writes nested settings as text, "dict(net_arch=[64, 64])", and PyYAML takes 3e-4 for text.
    if isinstance(value, dict):
        return {inner: _plain(key, name, item) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(key, name, item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return read_value(value)
    except SettingError as error:
        raise SettingError(f"{key}.yml, {name}: {error}") from None
