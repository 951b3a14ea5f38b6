"""What this process takes of the machine's memory for itself."""

from __future__ import annotations

import psutil


def private_bytes() -> int:
    """Memory of this process that nobody shares and no file backs."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
