"""JSON documents of a store: a header that is checked before anything else, and equal contents in equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lamella.core.errors import StoreFormatError
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file
from lamella.store.files import storage_errors
from lamella.store.layout import FORMAT_VERSION
from lamella.version import __version__

T = TypeVar("T")


def read_document(data: bytes, expected: str, path: Path | str) -> dict[str, Any]:
    """The fields of a document.

    Args:
        expected: its format.
        path: named in errors.

    Raises:
        StoreFormatError: no JSON, another format, or a newer version.
    """
    try:
        document = msgspec.json.decode(data)
    except UNREADABLE as error:
        raise StoreFormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        raise StoreFormatError(f"{path} is no {expected} document")
    version = document.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise StoreFormatError(
            f"{path} has format version {version!r}; this version of Lamella ({__version__}) reads 1 to "
            f"{FORMAT_VERSION}. Nothing was changed"
        )
    return document


def write_document(kind: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a document of format ``kind``."""
    header = {"format": kind, "format_version": FORMAT_VERSION, "tool_version": __version__}
    return json.dumps({**header, **fields}, indent=2, sort_keys=True).encode() + b"\n"


def read_note(path: Path, expected: str, kind: type[T], cure: str) -> T | None:
    """What a small document of the store notes; None if there is none.

    Args:
        expected: its format.
        kind: the dataclass of its fields.
        cure: the command that mends it.

    Raises:
        StoreFormatError: it cannot be read; names it and the cure.
        StorageFailed: the file system refused.
    """
    with storage_errors(path, "read"):
        try:
            data = read_file(path)
        except FileNotFoundError:
            return None
    try:
        return msgspec.convert(read_document(data, expected, path), kind)
    except (StoreFormatError, *UNREADABLE) as error:
        text = str(error) if isinstance(error, StoreFormatError) else f"{path}: {error}"
        raise StoreFormatError(f"{text}; to mend it, run: {cure}") from None
