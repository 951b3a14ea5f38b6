"""How many threads can compute at once."""

from __future__ import annotations

import os

MOST_THREADS = 512
"""llama.cpp ends the process where it is asked for more (``GGML_MAX_N_THREADS``)."""


def usable_cores() -> int:
    """Cores that this process may run on; of the whole machine on systems that do not say it of a process (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
