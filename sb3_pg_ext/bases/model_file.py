"""Model files: never torn when written, harmless when read.

The format is Stable-Baselines3's own, whose loader still reads our files; one more member, ``sb3_pg_ext.json``, says
which class they belong to. They are written aside and moved into place. They are read by
:class:`~sb3_pg_ext.bases.safe_pickle.SafeReader`, and every field that it has read is handed to Stable-Baselines3's
loader as a custom object, so that the loader itself has nothing to unpickle.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import json_to_data, open_path
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.bases.model_archive import (
    IDENTITY,
    ModelFileError,
    ModelPath,
    UnsafeModelError,
    check_tensors,
    opened,
    read_documents,
    reason,
    source_of,
)
from sb3_pg_ext.bases.model_identity import (
    check_class,
    check_replacements,
    check_values,
    identify,
    identity_of,
)
from sb3_pg_ext.bases.safe_names import is_importable, register_safe_class
from sb3_pg_ext.bases.safe_objects import RefusedError
from sb3_pg_ext.bases.safe_pickle import SafeReader

__all__ = [
    "ModelFileError",
    "ModelPath",
    "UnsafeModelError",
    "atomic_write",
    "identify",
    "load_model",
    "load_vec_normalize",
    "read_fields",
    "register_safe_class",
    "save_model",
]

Names = Iterable[str] | None
_WHOLE_MODEL = {"policy_class", "observation_space", "action_space"}


def save_model(model: BaseAlgorithm, path: ModelPath, exclude: Names = None, include: Names = None) -> None:
    """Write ``model`` in Stable-Baselines3's format; until the new file is whole, an old one of that name stays.

    :param model: what to save
    :param path: ``.zip`` is added to a name without a suffix, folders are made; or a file object open for writing
    :param exclude: further attributes to leave out
    :param include: attributes to keep although they are left out by default
    """
    if isinstance(path, (str, Path)):
        with atomic_write(_target(Path(path))) as temporary, open(temporary, "w+b") as file:
            _write(model, file, exclude, include)
    else:
        stream: Any = open_path(path, "w")
        buffer = io.BytesIO()
        _write(model, buffer, exclude, include)
        stream.write(buffer.getbuffer())


def _target(path: Path) -> Path:
    target = path if path.suffix else Path(f"{path}.zip")
    if not target.is_dir():
        return target
    warnings.warn(f"path={str(target)!r} is a folder; the model is saved to '{target}_2' instead", stacklevel=3)
    return Path(f"{target}_2")


def _write(model: BaseAlgorithm, file: Any, exclude: Names, include: Names) -> None:
    BaseAlgorithm.save(model, file, exclude, include)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(IDENTITY, json.dumps(identity_of(type(model)), indent=1))


def read_fields(
    path: ModelPath, *, allow: Iterable[Any] = (), custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The attributes stored in a model file (hyperparameters, spaces, counters), without running anything in it.

    :param path: name with or without ``.zip``, or a file object, whose position is kept
    :param allow: classes and functions of your own that the file may hold
    :param custom_objects: field -> what to take instead of reading that field
    :return: attribute name -> value
    :raises UnsafeModelError: a field needs something that is not on the list of harmless names
    :raises ModelFileError: the file is damaged, cut short, or no model file
    """
    source = source_of(path)
    with opened(path) as file:
        return _decode(read_documents(file, source)[0], source, allow, custom_objects)


def load_model(
    cls: type[BaseAlgorithm],
    path: ModelPath,
    env: Any = None,
    device: Any = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    *,
    trusted: bool = False,
    allow: Iterable[Any] = (),
    **kwargs: Any,
) -> Any:
    """``cls.load`` of Stable-Baselines3, for any of its classes, without running anything in the file.

    :param cls: the class of the model; the policies in its ``policy_aliases`` may be in the file
    :param path: name with or without ``.zip``, or a file object, which stays open and keeps its position
    :param env: the environment to go on with
    :param device: where to put the tensors
    :param custom_objects: field -> what to take instead of reading that field
    :param print_system_info: print the versions that the file was made with
    :param force_reset: reset ``env`` before training goes on
    :param trusted: leave everything to Stable-Baselines3, which runs what the file says
    :param allow: classes and functions of your own that the file may hold
    :param kwargs: attributes to set on the loaded model
    :raises UnsafeModelError: a field needs something that is not on the list of harmless names
    :raises ModelFileError: the file is damaged, cut short, no model file, or one of another class
    :raises TypeError: one of ``kwargs`` is no attribute
    :raises ValueError: the constructor would refuse one of ``kwargs``; its other exceptions come as they are
    """
    load = BaseAlgorithm.load.__func__  # type: ignore[attr-defined]
    source = source_of(path)
    with opened(path) as file:  # once: what is checked is what is loaded, whatever happens to the name meanwhile
        document = _checked_document(cls, file, source, kwargs, trusted)
        fields = custom_objects
        if not trusted:
            own = [policy for policy in cls.policy_aliases.values() if is_importable(policy)]
            fields = _decode(document, source, [*own, *allow], custom_objects)
            if missing := _WHOLE_MODEL - fields.keys():
                raise ModelFileError(f"{source} is not a whole model: it has no {', no '.join(sorted(missing))}")
            check_tensors(file, source)
        if kwargs and document:
            stored = json_to_data(json.dumps(document), custom_objects) if trusted else fields
            check_values(cls, kwargs, stored or {}, None if env is None else getattr(env, "num_envs", 1))
        return load(cls, file, env, device, fields, print_system_info, force_reset, **kwargs)


def _checked_document(
    cls: type[BaseAlgorithm], file: Any, source: str, replacements: dict[str, Any], trusted: bool
) -> dict[str, Any]:
    """The fields, not yet unpickled, of a file that ``cls`` may load."""
    try:
        document, identity = read_documents(file, source)
    except ModelFileError:
        if not trusted:
            raise
        return {}  # Stable-Baselines3 has fewer demands, and the last word
    check_class(cls, identity, source)
    check_replacements(cls, replacements, document)
    return document


def _decode(
    document: dict[str, Any], source: str, allow: Iterable[Any], custom_objects: dict[str, Any] | None
) -> dict[str, Any]:
    if custom_objects is not None and not isinstance(custom_objects, dict):
        raise ValueError(f"custom_objects={custom_objects!r}: a dict or None is needed")
    reader, replaced = SafeReader(allow), custom_objects or {}
    fields: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, value in document.items():
        try:
            fields[name] = replaced[name] if name in replaced else _value(reader, value)
        except RefusedError as error:
            refused[name] = str(error)
        except Exception as error:
            raise ModelFileError(
                f"{source}: field {name!r} cannot be read: {reason(error)}. "
                f"custom_objects={{{name!r}: ...}} puts an object of your own in its place."
            ) from error
    if refused:
        raise UnsafeModelError(source, refused)
    return fields


def _value(reader: SafeReader, value: Any) -> Any:
    if isinstance(value, dict) and ":serialized:" in value:
        return reader.read(base64.b64decode(value[":serialized:"].encode()))
    return value


def load_vec_normalize(
    path: str | Path, venv: VecEnv, *, trusted: bool = False, allow: Iterable[Any] = ()
) -> VecNormalize:
    """``VecNormalize.load`` without running anything in the file.

    :param path: what ``VecNormalize.save`` has written
    :param venv: the environment to wrap
    :param trusted: leave everything to Stable-Baselines3, which runs what the file says
    :param allow: classes and functions of your own that the file may hold
    :raises UnsafeModelError: it needs something that is not on the list of harmless names
    :raises ModelFileError: damaged, cut short, or something else
    """
    if trusted:
        return VecNormalize.load(str(path), venv)
    data = Path(path).read_bytes()
    try:
        normalize = SafeReader(allow).read(data)
    except RefusedError as error:
        raise UnsafeModelError(str(path), {"": str(error)}) from error
    except Exception as error:
        raise ModelFileError(f"{path} is cut short or does not hold a VecNormalize: {reason(error)}") from error
    if not isinstance(normalize, VecNormalize):
        raise ModelFileError(f"{path} holds a {type(normalize).__name__}, not a VecNormalize")
    normalize.set_venv(venv)
    return normalize
