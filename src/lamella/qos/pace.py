"""How fast the machine is now, against its profile: one figure for all variants.

    pace = HostPace()
    pace = pace.seen(1.3)         # steps of late took 1.3 times as long as the profile says: pace.times is 1.3
    pace = pace.seen(1.1)         # and now 1.1: about 1.2

A profile is of the quarter of an hour in which it was measured; a shared or a hot machine is a third slower an hour
later, and so are all its variants.  Those that do not run show nothing of it, and the fastest runs least, so what one
shows is held for true of all.  ``live.learning`` keeps what a variant differs by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella.qos.profiles.refresh import tamed

FOLLOW_SECONDS = 2.0
"""It is looked at so often..."""
WEIGHT = 0.5
"""...and moved by this share of the way, of logarithms: spells last for seconds to minutes (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class HostPace:
    """What is known.

    Attributes:
        times: how many times longer steps take than the profile says, what others take of the processor left out.
        is_known: anything was seen.
    """

    times: float = 1.0
    is_known: bool = False

    def seen(self, ratio: float) -> HostPace:
        """After steps that took ``ratio`` times as long as the profile says; the first ones count fully."""
        weight = WEIGHT if self.is_known else 1.0
        return HostPace(self.times ** (1 - weight) * tamed(ratio) ** weight, is_known=True)
