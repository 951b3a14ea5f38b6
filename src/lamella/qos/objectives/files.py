"""Objectives as a TOML file, and as flags.

    memory = "2GiB"
    power_watts = 25
    battery_watts = 10

    [class.interactive]
    priority = 10
    ttft_p95_ms = 1500
    tpot_p95_ms = 80
    max_kl = 0.1

    [class.batch]

A flag states one class: ``interactive:ttft_p95_ms=1500,tpot_p95_ms=80,max_kl=0.1,priority=10``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import check_file
from lamella.core.units import parse_bytes
from lamella.qos.objectives.stated import ClassObjectives, Objectives

_MILLI = 1000


class _Class(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class as it is written."""

    priority: int = 0
    ttft_p95_ms: float | None = None
    tpot_p95_ms: float | None = None
    max_kl: float | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it is written."""

    classes: dict[str, _Class] = msgspec.field(name="class", default_factory=dict)
    memory: str | None = None
    power_watts: float | None = None
    battery_watts: float | None = None


def read_objectives(path: Path) -> Objectives:
    """Read a file.

    Raises:
        InvalidRequest: it cannot be read, is no TOML, or has a field or a value that has no meaning; names it.
    """
    try:
        check_file(path)
        document = _toml(path.read_text(encoding="utf-8"))
        found = msgspec.convert(document, _File)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
    except (ValueError, *UNREADABLE) as error:  # TOMLDecodeError is a ValueError
        raise InvalidRequest(f"{path}: {error}") from None
    return _objectives(found)


def _toml(text: str) -> dict[str, Any]:
    """The document.  ``tomllib`` descends into brackets by recursion, and says so where they are too many."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def objectives_of(document: object) -> Objectives:
    """Objectives from a document of the file's form, as JSON has it.

    Raises:
        InvalidRequest: a field or a value that has no meaning; names it.
    """
    try:
        return _objectives(msgspec.convert(document, _File))
    except UNREADABLE as error:
        raise InvalidRequest(f"objectives: {error}") from None


def objectives_fields(objectives: Objectives) -> dict[str, Any]:
    """The document that ``objectives_of`` reads."""
    fields: dict[str, Any] = {
        "class": {
            name: {
                "priority": wanted.priority,
                "ttft_p95_ms": _milliseconds(wanted.ttft_seconds),
                "tpot_p95_ms": _milliseconds(wanted.tpot_seconds),
                "max_kl": wanted.most_kl,
            }
            for name, wanted in objectives.classes.items()
        },
        "memory": None if objectives.memory_bytes is None else f"{objectives.memory_bytes}B",
        "power_watts": objectives.power_watts,
        "battery_watts": objectives.battery_watts,
    }
    return fields


def stated_objectives(
    classes: Iterable[str], *, memory: str | None = None, power: float | None = None, battery: float | None = None
) -> Objectives:
    """Objectives from flags.

    Args:
        classes: ``NAME:FIELD=NUMBER,...`` each.

    Raises:
        InvalidRequest: a flag that has no meaning.
    """
    named = dict(map(_read_class, classes))
    return _objectives(_File(named, memory, power, battery))


def _objectives(found: _File) -> Objectives:
    return Objectives(
        classes={
            name: ClassObjectives(
                ttft_seconds=None if c.ttft_p95_ms is None else c.ttft_p95_ms / _MILLI,
                tpot_seconds=None if c.tpot_p95_ms is None else c.tpot_p95_ms / _MILLI,
                most_kl=c.max_kl,
                priority=c.priority,
            )
            for name, c in found.classes.items()
        },
        memory_bytes=None if found.memory is None else parse_bytes(found.memory),
        power_watts=found.power_watts,
        battery_watts=found.battery_watts,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * _MILLI, 6)


def _read_class(text: str) -> tuple[str, _Class]:
    name, _, settings = text.partition(":")
    pairs = [setting.partition("=") for setting in filter(None, settings.split(","))]
    try:
        return name, msgspec.convert({key: value for key, _, value in pairs}, _Class, strict=False)
    except UNREADABLE as error:
        fields = ", ".join(_Class.__struct_fields__)
        raise InvalidRequest(f"class '{text}': {error}; write NAME:FIELD=NUMBER,... with the fields {fields}") from None
