"""Names of signals."""

from __future__ import annotations

import signal

from lamella.core.signals import signal_name


def test_every_signal_can_be_said() -> None:
    assert signal_name(9) == "SIGKILL"
    assert all(signal_name(number).startswith("SIG") for number in range(1, signal.NSIG))
