"""What all tests need."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take SIGINT as a terminal gives it: what a shell runs in the background ignores it, and its children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
