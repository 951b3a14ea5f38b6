"""Traces as files.

Our own form is one JSON object a line, ascending by time; docs/artifacts.md shows one:

    {"seconds": 0.25, "n_prompt": 120, "n_generated": 40, "class": "interactive"}

The other form is that of the public Azure LLM inference traces (github.com/Azure/AzurePublicDataset): a table with the
columns TIMESTAMP, ContextTokens and GeneratedTokens.  A file is told by its first line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import check_file
from lamella.qos.traces.arrivals import DEFAULT_CLASS, Arrival, Trace

_TIME, _PROMPT, _GENERATED = AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of our own form."""

    seconds: float
    n_prompt: int
    n_generated: int
    class_name: str = msgspec.field(name="class", default=DEFAULT_CLASS)


def read_trace(path: Path, class_name: str = DEFAULT_CLASS) -> Trace:
    """Read a trace of either form.

    Args:
        class_name: of requests whose form names none.

    Raises:
        InvalidRequest: it cannot be read, holds no request, or a line is wrong; names the line.
    """
    try:
        check_file(path)
        with path.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]  # and no other ends of lines, which names may have in them
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidRequest(f"{path} cannot be read: {reason}") from None
    is_azure = bool(lines) and lines[0].lstrip("\ufeff").startswith(_TIME)
    arrivals = _read_azure(path, lines, class_name) if is_azure else _read_lines(path, lines)
    if not arrivals:
        raise InvalidRequest(f"{path} holds no request")
    return Trace(str(path), tuple(arrivals))


def write_trace(trace: Trace) -> bytes:
    """A trace in our own form."""
    lines = (_Line(a.seconds, a.n_prompt, a.n_generated, a.class_name) for a in trace.arrivals)
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _read_lines(path: Path, lines: Iterable[str]) -> list[Arrival]:
    found: list[Arrival] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
        except UNREADABLE as error:
            raise _wrong(path, number, str(error)) from None
        arrival = Arrival(line.seconds, line.n_prompt, line.n_generated, line.class_name)
        if fault := arrival.fault():
            raise _wrong(path, number, fault)
        if found and arrival.seconds < found[-1].seconds:
            raise _wrong(path, number, f"{arrival.seconds} s is before the request above it")
        found.append(arrival)
    return found


def _read_azure(path: Path, lines: list[str], class_name: str) -> list[Arrival]:
    """Rows sorted by time, from 0 on; one that wrote nothing counts as writing one token, which every request draws."""
    rows = sorted(_azure_rows(path, lines), key=lambda row: row[0])
    return [
        Arrival((time - rows[0][0]).total_seconds(), n_prompt, max(1, n_generated), class_name)
        for time, n_prompt, n_generated in rows
    ]


def _azure_rows(path: Path, lines: list[str]) -> Iterator[tuple[datetime, int, int]]:
    table = csv.DictReader([lines[0].lstrip("\ufeff"), *lines[1:]])
    missing = [c for c in AZURE_COLUMNS if c not in (table.fieldnames or ())]
    if missing:
        raise _wrong(path, 1, f"there is no column {missing[0]}")
    for row in _rows(path, table):
        try:
            time = datetime.fromisoformat(row[_TIME])
            n_prompt, n_generated = int(row[_PROMPT]), int(row[_GENERATED])
        except (TypeError, ValueError) as error:
            raise _wrong(path, table.line_num, _shown(row, error)) from None
        if n_prompt < 1 or n_generated < 0:
            raise _wrong(path, table.line_num, f"{n_prompt} context and {n_generated} generated tokens")
        yield time if time.tzinfo else time.replace(tzinfo=UTC), n_prompt, n_generated


def _rows(path: Path, table: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    """The rows; what ``csv`` cannot read (a field without end) is named as any other wrong line is."""
    try:
        yield from table
    except csv.Error as error:
        raise _wrong(path, table.line_num, str(error)) from None


def _shown(row: dict[str, Any], error: Exception) -> str:
    return f"{error} ({', '.join(f'{c}={row.get(c)!r}' for c in AZURE_COLUMNS)})"


def _wrong(path: Path, number: int, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{path}, line {number}: {reason}")
