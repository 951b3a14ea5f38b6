"""The child that opens a file of somebody else first: ``python -P -m lamella.llama.looking KIND PATH BYTES SECONDS``.

It shuts itself in before it loads anything that parses: memory, processor time, no file may grow, no network where
the system lets it.  Then it does with the file what its caller is going to do: ggml's parser, every key and tensor,
and of a model llama.cpp's own reading of hyper-parameters and vocabulary with a plan of its graph (no weights).  The
last line of its output is an ``Answer``; whoever finds none there knows that the file has killed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["model", "importance"]
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET (linux/sched.h)
_DRY_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What the child found.

    Attributes:
        error: name of the error by which the file was refused; "" where it was read.
        message: of that error.
        has_network: whether this process could have reached one.
    """

    error: str = ""
    message: str = ""
    has_network: bool = True


def shut_in(n_bytes: int, n_seconds: int) -> bool:
    """Give up for good what reading a file needs not; whether the network is gone is returned.

    Memory is counted as private memory (``RLIMIT_DATA``): a mapped file of any size is none.
    """
    limits = {
        resource.RLIMIT_DATA: n_bytes,
        resource.RLIMIT_CPU: n_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # an even lower limit of the caller's
            resource.setrlimit(kind, (most, most))
    return _leave_network()


def _leave_network() -> bool:
    """A network namespace with nothing in it.  An ordinary user makes it in a user namespace, where that is allowed."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    return unshare is not None and any(unshare(flags) == 0 for flags in (_NEW_NETWORK, _NEW_USER | _NEW_NETWORK))


def look(kind: Kind, path: Path) -> None:
    """Read the file as Lamella does.

    Raises:
        ModelError, ArtifactError: it cannot be used, and says so.
    """
    from lamella.core.errors import EngineFailed
    from lamella.llama.context import ContextOptions
    from lamella.llama.gguf import read_model
    from lamella.llama.imatrix import read_imatrix
    from lamella.llama.memory import context_memory

    if kind == "importance":
        read_imatrix(path)
        return
    found = read_model(path)
    with contextlib.suppress(EngineFailed):  # whether llama.cpp can run it is another question; it lives to say so
        context_memory(found.paths, ContextOptions(n_ctx=_DRY_CONTEXT))


def main(kind: Kind, path: str, n_bytes: str, n_seconds: str) -> None:
    """Shut in, look, say what was found."""
    has_network = not shut_in(int(n_bytes), int(n_seconds))
    from lamella.core.errors import LamellaError

    answer = Answer(has_network=has_network)
    try:
        look(kind, Path(path))
    except LamellaError as error:
        answer = Answer(type(error).__name__, str(error), has_network)
    except MemoryError:
        answer = Answer("HarmfulFile", f"{path}: reading it takes more than {int(n_bytes) >> 20} MiB", has_network)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
