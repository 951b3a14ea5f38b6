"""Python's garbage collector in processes that somebody waits for."""

from __future__ import annotations

import gc


def keep_what_is_there() -> None:
    """Let collections look only at what is made from now on: what a process has loaded by then mostly stays.

    A full collection over the imported modules stops all threads for 40 ms (the engine) to 120 ms (the web front),
    where a step of the model takes 26 ms.  None is made before: it finds next to nothing then.
    """
    gc.freeze()
