"""The outside of a model file: a zip with a JSON member ``data``, checked before anything in it is used."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import open_path

ModelPath = str | Path | BufferedIOBase
IDENTITY = "sb3_pg_ext.json"
MAX_DATA_BYTES = 64 * 2**20
MAX_DATA_VALUES = 1_000_000
MAX_INFLATION = 4  # how many times the size of the file its content may have, beyond MAX_DATA_BYTES


class ModelFileError(ValueError):
    """The file is damaged, cut short, or no model file."""


class UnsafeModelError(ModelFileError):
    """Reading the file could run code.

    :param source: the file
    :param refused: field -> what it needs; an empty field name stands for a file that has no fields
    """

    def __init__(self, source: str, refused: Mapping[str, str]):
        super().__init__(source, dict(refused))
        self.source, self.refused = source, dict(refused)

    def __str__(self) -> str:
        needs = "; ".join(
            f"{f'field {name!r}' if name else 'it'} needs {_explain(what)}" for name, what in self.refused.items()
        )
        fields = ", ".join(f"{name!r}: ..." for name in self.refused if name)
        instead = f"custom_objects={{{fields}}} puts objects of your own in their place; " if fields else ""
        return (
            f"{self.source} was not loaded, because reading it could run code: {needs}. Ways on: {instead}"
            "allow=[TheClass] or register_safe_class(TheClass) vouches for a class or function that can be imported; "
            "trusted=True reads everything, for a file whose maker you trust."
        )


def _explain(what: str) -> str:
    by_value = what.startswith("cloudpickle.")
    return what + by_value * " (a function or class of a script, a notebook or another function, stored as code)"


def reason(error: Exception) -> str:
    """Kind and short text of an error; its ``repr`` may hold megabytes of the file."""
    return f"{type(error).__name__}: {str(error)[:200]}"


def source_of(path: ModelPath) -> str:
    """How messages name the file."""
    return str(path) if isinstance(path, (str, Path)) else str(getattr(path, "name", "the file object"))


@contextlib.contextmanager
def opened(path: ModelPath) -> Iterator[Any]:
    """The file, open for reading. A file object stays open and keeps its position.

    :param path: name with or without ``.zip``, or a file object
    """
    file: Any = open_path(path, "r", suffix="zip")
    start = file.tell()
    try:
        yield file
    finally:
        if isinstance(path, (str, Path)):
            file.close()
        else:
            file.seek(start)


def read_documents(file: Any, source: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The fields of a model file, pickles still as text, and what ``sb3_pg_ext.json`` says, if it is there.

    :param file: open for reading
    :param source: how messages name it
    :raises ModelFileError: damaged, cut short, no model file, or far larger inside than outside
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive, size=file.seek(0, os.SEEK_END))
            names = archive.namelist()
            return _parse(archive.read("data")), _parse(archive.read(IDENTITY)) if IDENTITY in names else None
    except ModelFileError as error:
        raise ModelFileError(f"{source} {error}") from None
    except Exception as error:  # damaged bytes raise whatever they like: zlib.error, struct.error, RecursionError, ...
        raise ModelFileError(f"{source} is cut short or not a model file: {reason(error)}") from error


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if "data" not in archive.namelist():
        raise ModelFileError("is cut short or not a model file: it has no member 'data'")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelFileError(f"has a member {member.filename!r} with a compression that no model file uses")
        if member.filename in ("data", IDENTITY) and member.file_size > MAX_DATA_BYTES:
            raise ModelFileError(f"has {member.file_size} bytes of {member.filename!r}; {MAX_DATA_BYTES} are allowed")
    _check_inflation(archive, size)
    damaged = archive.testzip()
    if damaged is not None:
        raise ModelFileError(f"is damaged: the checksum of its member {damaged!r} is wrong")


def _check_inflation(archive: zipfile.ZipFile, size: int) -> None:
    inflated = sum(member.file_size for member in archive.infolist())
    if inflated > MAX_DATA_BYTES + MAX_INFLATION * size:
        raise ModelFileError(f"has {size} bytes that would unpack to {inflated}, as no model does")


def check_tensors(file: Any, source: str) -> None:
    """Read every ``.pth`` member once, with torch's reader for numbers only.

    :param file: open for reading
    :param source: how messages name it
    :raises ModelFileError: a member holds something else than numbers, or is far larger inside than outside
    """
    with zipfile.ZipFile(file) as archive:
        for name in (name for name in archive.namelist() if name.endswith(".pth")):
            try:
                _check_tensor_file(archive.read(name))
            except Exception as error:
                raise ModelFileError(
                    f"{source}: its member {name!r} is not a file of tensors: {reason(error)}"
                ) from error


def _check_tensor_file(content: bytes) -> None:
    file = BytesIO(content)
    if zipfile.is_zipfile(file):  # torch's own format is a zip again
        with zipfile.ZipFile(file) as archive:
            _check_inflation(archive, len(content))
    file.seek(0)
    torch.load(file, map_location="cpu", weights_only=True)


def _parse(text: bytes) -> dict[str, Any]:
    # Counted before parsing: "[[],[],..." takes thirty times its length in memory.
    if sum(map(text.count, (b",", b"[", b"{", b":"))) > MAX_DATA_VALUES:
        raise ModelFileError(f"has more than {MAX_DATA_VALUES} values in its JSON, as no model does")
    parsed = json.loads(text.decode())
    if not isinstance(parsed, dict):
        raise ModelFileError("is not a model file: its JSON is not an object")
    return parsed
