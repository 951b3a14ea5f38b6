"""What readers share: absence with a reason, and small files of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Absent:
    """What a reader gives where the machine lacks what it reads.

    Attributes:
        reader: which one.
        reason: what is missing, in words.
    """

    reader: str
    reason: str


def read_text(path: Path) -> str | None:
    """A file's text without white space around it; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """A file that holds one whole number; None where it is not there or holds something else."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def folders(parent: Path, pattern: str) -> list[Path]:
    """Folders (or links to them) that match, sorted by name; none where the parent is missing."""
    try:
        return sorted(path for path in parent.glob(pattern) if path.is_dir())
    except OSError:
        return []
