"""What all tests need."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take SIGINT as a terminal gives it: run in the background, a shell lets it be ignored, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
