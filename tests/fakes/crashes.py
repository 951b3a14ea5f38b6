"""Children that work in a store, and die there.

    command = worker("build", store, model, "v")         # python -m tests.fakes.workers build ...
    ended = run_and_kill(command, delay_s=0.02)

A child prints ``ready`` and waits for a line, so that moments count from there and not from the start of Python.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY = "ready"


def worker(role: str, *arguments: object) -> list[str]:
    """Command line of a worker (``tests/fakes/workers.py``)."""
    return [sys.executable, "-m", "tests.fakes.workers", role, *map(str, arguments)]


def start(*commands: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start children; all of them are at work when this returns."""
    pipe = subprocess.PIPE
    children = [subprocess.Popen(c, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for c in commands]
    for child in children:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first == f"{READY}\n", (first, child.communicate()[1])
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return children


def run_and_kill(command: Sequence[str], delay_s: float) -> bool:
    """Kill a child with SIGKILL so long after it went to work; whether it had ended by itself.

    Fails if it had ended with an error.
    """
    (child,) = start(command)
    time.sleep(delay_s)
    child.kill()
    _, errors = child.communicate()
    assert child.returncode in (0, -9), errors
    return child.returncode == 0


def seconds_of(command: Sequence[str]) -> float:
    """How long a child works that nobody disturbs."""
    (child,) = start(command)
    assert child.stdout is not None
    began = time.monotonic()
    child.stdout.readline()  # what it did; then Python takes its time to end
    seconds = time.monotonic() - began
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return seconds
