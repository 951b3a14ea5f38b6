"""Real small and read-only file systems, where the tests may mount them (as root in a container)."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A tmpfs of ``n_bytes`` at ``folder``; skips the test where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={n_bytes}", "lamella-test", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize_disk(folder: Path, n_bytes: int) -> None:
    """Give the disk at ``folder`` another size."""
    _mount("-o", f"remount,size={n_bytes}", str(folder))


def make_read_only(folder: Path) -> None:
    """Nobody may write to the disk at ``folder`` any more, root included."""
    _mount("-o", "remount,ro", str(folder))


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not allowed here: {getattr(error, 'stderr', '') or error}")
