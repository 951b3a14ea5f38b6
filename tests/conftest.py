"""What all tests need."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take SIGINT as a terminal gives it: shells let what runs in the background ignore it, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
