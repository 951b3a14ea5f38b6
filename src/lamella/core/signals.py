"""What a process was ended by, for people."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """``SIGKILL``, or ``SIG35`` of one that Python has no name for, as most of the real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
