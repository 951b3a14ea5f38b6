"""Work in a process of its own, because ggml ends a process where it cannot go on.

out = await output_of(command, 60.0, failed="no pass over node 'laptop'", late="...")      # who asks
sys.exit(write_output(lambda: repr(seconds).encode()))                                    # what is run
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence

from lamella.core.errors import LamellaError, RemoteFailed


async def output_of(command: Sequence[str], seconds: float, *, failed: str, late: str) -> bytes:
    """What a program prints; it is killed where nobody waits for it any more.

    Args:
        seconds: that it may take.
        failed, late: how the error begins where it fails, before its own last line; and what is said where it is late.

    Raises:
        RemoteFailed: it died, or took too long.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, said = await process.communicate()
    except TimeoutError:
        raise RemoteFailed(late) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # to the end of its pipes, which closes them
    if process.returncode:
        words = said.decode(errors="replace").strip().splitlines()
        raise RemoteFailed(f"{failed}: {words[-1] if words else process.returncode}")
    return out


def write_output(work: Callable[[], bytes]) -> int:
    """Write what some work gives to the standard output, or its error to the error stream; returns the exit code."""
    try:
        sys.stdout.buffer.write(work())
    except LamellaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
