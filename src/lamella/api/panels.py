"""What the server's dashboard shows of this machine, from its readers and from the profile that was kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.api.profiles import find_profile
from lamella.core.closing import Closing
from lamella.core.errors import LamellaError
from lamella.dashboard.state import Machine, Measured
from lamella.qos.profiles.speed import SpeedModel
from lamella.qos.readers import energy, nvidia
from lamella.qos.readers.machine import MachineReader

if TYPE_CHECKING:
    from lamella.batching.settings import EngineSettings
    from lamella.qos.profiles.documents import Profile
    from lamella.qos.readers.machine import MachineSample

DEPTH = 64
"""Tokens in the cache for which the time a token is shown, as in ``lamella profile``."""


class MachineFigures(Closing):
    """Readings for ``Recorder``; not for two threads at once."""

    def __init__(self, reader: MachineReader | None = None) -> None:
        """Read by ``reader``, which is closed here; None: one of this machine."""
        self._reader = reader or MachineReader()

    def read(self) -> Machine:
        """What the machine says now."""
        sample = self._reader.read(time.monotonic())
        return Machine(
            available_bytes=sample.memory.available_bytes if sample.memory else None,
            watts=sample.watts,
            why_no_watts=_why_no_watts(sample),
        )

    def close(self) -> None:
        self._reader.close()


def _why_no_watts(sample: MachineSample) -> str:
    """What is missing, of the two that could tell; "" where one does."""
    missing = {absent.reader: absent.reason for absent in sample.absent}
    asked = (energy.READER, nvidia.READER)
    return "; ".join(missing[reader] for reader in asked) if all(reader in missing for reader in asked) else ""


def measured_variants(settings: EngineSettings, cache_folder: Path) -> dict[str, Measured]:
    """By variant, what ``lamella profile`` kept of this engine on this machine; empty where nothing was measured."""
    try:
        return measured_in(find_profile(settings, cache_folder))
    except LamellaError:  # a page without measured points is no reason to serve nothing
        return {}


def measured_in(profile: Profile) -> dict[str, Measured]:
    """By variant, its time a token alone and its KL."""
    return {
        variant.name: Measured(
            ms_per_token=SpeedModel(variant, profile.engine.n_batch).writing(1, DEPTH) * 1000,
            kl=variant.quality.kl,
            kl_is_measured=variant.quality.is_measured,
        )
        for variant in profile.variants
    }
