"""Work beside the work that somebody waits for: it gives way on cores that both want."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

LESS_URGENT = 5
"""Steps of niceness, each of which leaves about 0.8 of a share.

Five leave a quarter of a contested core: a step of the model grows by a third while a variant is prepared, and
preparing takes twice as long as on equal terms."""


def give_way() -> None:
    """Let other threads go before the calling one from now on.

    Does nothing where the system has no priorities of threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LESS_URGENT)
