"""Finished probes on disk: one line of JSON each, so that an interrupted measurement goes on where it was.

    with journal_file(Path("sensitivity.json.part")) as open_journal:
        measure_sensitivity(model_file, texts, open_journal=open_journal)

The first line says what the losses depend on (weights, texts, settings).  A file that says something else, or nothing
readable, is started anew.  A last line that was cut off, by a full disk or a killed process, is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from lamella.core.errors import StorageFailed
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import check_file
from lamella.measuring.probes import Loss
from lamella.measuring.sensitivity import Journal, Losses, OpenJournal


class _Line(msgspec.Struct, frozen=True):
    probe: str
    losses: dict[str, Loss]


@contextlib.contextmanager
def journal_file(path: Path) -> Iterator[OpenJournal]:
    """Keep probes in ``path``; it is removed when the block ends well, and stays when it does not.

    Raises:
        StorageFailed: the file cannot be written.
    """
    with contextlib.ExitStack() as files:

        def open_journal(depends_on: Mapping[str, object]) -> Journal:
            head = msgspec.json.encode(depends_on, order="sorted")
            try:
                if path.exists():
                    check_file(path)
                done, n_bytes = _read(path, head)
                file = path.open("r+b" if n_bytes else "wb")
                files.callback(_close, file)
                file.seek(n_bytes)
                file.truncate()
                if not n_bytes:
                    _append(file, head)
            except OSError as error:
                raise StorageFailed(f"cannot keep finished probes in {path}: {error.strerror}") from error
            return Journal(done, lambda probe, losses: _add(path, file, probe, losses))

        yield open_journal
        path.unlink(missing_ok=True)


def _read(path: Path, head: bytes) -> tuple[dict[str, Losses], int]:
    """Probes in the file, and how many of its bytes hold; (nothing, 0) if it is of another measurement."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return {}, 0
    if not lines or lines[0] != head + b"\n":
        return {}, 0
    done: dict[str, Losses] = {}
    n_bytes = len(lines[0])
    for line in lines[1:]:
        try:
            read = msgspec.json.decode(line, type=_Line)
        except UNREADABLE:
            break
        if not line.endswith(b"\n"):
            break
        done[read.probe] = read.losses
        n_bytes += len(line)
    return done, n_bytes


def _add(path: Path, file: IO[bytes], probe: str, losses: Losses) -> None:
    try:
        _append(file, msgspec.json.encode(_Line(probe, dict(losses))))
    except OSError as error:
        raise StorageFailed(f"cannot keep finished probes in {path}: {error.strerror}") from error


def _close(file: IO[bytes]) -> None:
    """Whole lines were flushed when they were added; what a full disk refused is tried again here, and was told."""
    with contextlib.suppress(OSError):
        file.close()


def _append(file: IO[bytes], line: bytes) -> None:
    file.write(line + b"\n")
    file.flush()
