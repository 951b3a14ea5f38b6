"""A file from anywhere is opened by a child process first; this one opens only what the child has survived.

    look_first(Path("model.gguf"), cache_folder=Path("~/.cache/lamella").expanduser())

ggml and llama.cpp are C and C++ that read what somebody else wrote: a file may crash them, ask for all memory there is,
or never end.  The child (``llama.looking``) has limits for all of it, and a file that it reads well is noted by its
identity, so that the next start does not ask again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from lamella.core import errors
from lamella.core.errors import HarmfulFile, LamellaError, StorageFailed, StoreFormatError
from lamella.core.foreign import UNREADABLE
from lamella.core.signals import signal_name
from lamella.core.units import GIB, format_bytes
from lamella.llama.looking import Answer, Kind
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, write_atomically
from lamella.version import __version__

NOTE_FORMAT = "lamella.first-look"
_PART = re.compile(r"(.*-)\d{5}(-of-\d{5}\.gguf)")
_NO_DEVICES = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True)
class LookLimits:
    """What the child may take.

    Attributes:
        n_bytes: private memory.  The vocabulary of a large model takes some 100 MiB.
        seconds: of wall-clock time; of processor time the child has as many.
    """

    n_bytes: int = 4 * GIB
    seconds: int = 120


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was when it was looked at; ``changed_ns`` is kept by the kernel, and nobody can set it back."""

    path: str
    n_bytes: int
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> _File:
        found = path.stat()
        return cls(str(path.absolute()), found.st_size, found.st_ino, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Looked:
    files: tuple[_File, ...]


def look_first(
    path: Path, cache_folder: Path | None = None, *, kind: Kind = "model", limits: LookLimits | None = None
) -> None:
    """Have a child read a file, with all parts of a split model, unless it has read the same before.

    Args:
        cache_folder: where it is noted what was read well; None for this process's memory alone.

    Raises:
        HarmfulFile: the child died of it, or took too long or too much.
        ModelError, ArtifactError: the child refuses it; as reading it here would.
    """
    try:
        files = tuple(map(_File.of, _parts(path)))
    except OSError:
        return  # whoever opens it says why it cannot be read
    look_once(files, str(path), kind, limits or LookLimits(), cache_folder)


def _parts(path: Path) -> list[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    first, last = match.groups()
    return sorted(p for p in path.parent.iterdir() if p.name.startswith(first) and p.name.endswith(last))


@functools.lru_cache(maxsize=64)
def look_once(files: tuple[_File, ...], path: str, kind: Kind, limits: LookLimits, cache_folder: Path | None) -> None:
    """As ``look_first``, of files as they are now; this process remembers what was read well (``cache_clear``)."""
    note = _note(cache_folder, files, kind) if cache_folder else None
    if note is not None and _is_noted(note, files):
        return
    ask_child(path, kind, limits)
    if note is not None:
        with contextlib.suppress(StorageFailed):  # a cache
            with storage_errors(note, "write"):
                note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note.parent, note, write_document(NOTE_FORMAT, asdict(_Looked(files))), durable=False)


def _note(cache_folder: Path, files: tuple[_File, ...], kind: Kind) -> Path:
    asked = hashlib.sha256(repr((__version__, kind, files)).encode()).hexdigest()
    return cache_folder / "first-look" / f"{asked[:32]}.json"


def _is_noted(note: Path, files: tuple[_File, ...]) -> bool:
    with contextlib.suppress(StoreFormatError, StorageFailed):
        found = read_note(note, NOTE_FORMAT, _Looked, f"rm {note}")
        return found is not None and found.files == files
    return False


def ask_child(path: str, kind: Kind, limits: LookLimits) -> None:
    """Have a child read a file now.

    Raises:
        HarmfulFile, ModelError, ArtifactError: as ``look_first``.
    """
    limited = (str(limits.n_bytes), str(limits.seconds))
    command = [sys.executable, "-P", "-m", "lamella.llama.looking", kind, path, *limited]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.seconds,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HarmfulFile(f"{path} is not opened: a child process read it for {limits.seconds} s without end") from None
    try:
        answer = msgspec.json.decode(done.stdout.rpartition(b"\n")[0].rpartition(b"\n")[2], type=Answer)
    except UNREADABLE:
        raise HarmfulFile(f"{path} is not opened: {_death(done, limits)}") from None
    if answer.error:
        raise _error(answer)


def _environment() -> dict[str, str]:
    """Of this process without tokens and keys, and without devices, which reading a file needs not."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAMELLA_")}
    return {**kept, **_NO_DEVICES}


def _death(done: subprocess.CompletedProcess[bytes], limits: LookLimits) -> str:
    if done.returncode >= 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"the child process that reads files first failed ({said[-1][:200] if said else done.returncode})"
    name = signal_name(-done.returncode)
    return (
        f"reading it killed the child process that reads files first ({name}); it is damaged or made to do harm "
        f"(the child may take {format_bytes(limits.n_bytes)} and {limits.seconds} s)"
    )


def _error(answer: Answer) -> LamellaError:
    """The error that the child names, if it is one that can be made of a message."""
    kind = getattr(errors, answer.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.ModelError | errors.ArtifactError | errors.LibraryError):
        return kind(answer.message)
    return HarmfulFile(answer.message)
