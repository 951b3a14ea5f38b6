"""Another ``lamella`` command, run to its end in a process of its own.

A server's front loads no llama.cpp: what has to be measured or built before it can serve is done by such a child.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lamella.core.errors import INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, EngineFailed


def lamella_in_child(arguments: Sequence[str]) -> int:
    """Its exit code.  What it says for people goes to the error stream: standard output is this command's own.

    It ends where this process is told to (SIGTERM).

    Raises:
        EngineFailed: a signal ended it, of which it could not say anything.
    """
    command = [sys.executable, "-P", "-m", "lamella", *arguments]
    with subprocess.Popen(command, stdout=sys.stderr) as child, _passed_on(child):
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the child got it, too
            child.wait()
            return INTERRUPTED_EXIT_CODE
    if code == -signal.SIGTERM:
        return TERMINATED_EXIT_CODE
    if code < 0:
        raise EngineFailed(
            f"'lamella {arguments[0]}' was ended by signal {-code}; the kernel does that where memory is short"
        )
    return code


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM to this process goes to the child, so that no measurement runs on beside the next server."""
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
