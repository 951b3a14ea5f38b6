"""How much longer steps take than a profile says: in the median, in slow and quick spells, and as somebody saw it.

slowdown = Slowdown(median=1.05, scatter=0.1, seed=1)
slowdown.at(12.5)        # 1.13 now, and nearly the same a second later
Slowdown(median=1.05, course=((30.0, 0.98), (90.0, 1.06)))   # what somebody saw; spells come on top of it

A shared machine computes a little slower for some seconds, then a little quicker.  The logarithm is an
Ornstein-Uhlenbeck process (Physical Review 36, 1930): normal around that of the median, and what it is now says the
less of later the more ``SPELL_SECONDS`` have passed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from lamella.core.errors import InvalidRequest
from lamella.qos.profiles.curves import Curve

SPELL_SECONDS = 10.0
MOST_SCATTER = 1.0
"""Steps would be three times quicker and slower than usual every minute."""


class Slowdown:
    """Asked in the order of time."""

    __slots__ = ("_chance", "_course", "_median", "_now", "_off", "_scatter")

    def __init__(
        self,
        median: float = 1.0,
        scatter: float = 0.0,
        seed: int = 0,
        course: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Begin at time 0.

        Args:
            median: how many times longer steps take than in the profile.
            scatter: standard deviation of the logarithm; 0 for steps that are all alike.
            course: seconds, and how many times longer than in the median steps took then; straight between the points,
                level before the first and after the last.

        Raises:
            InvalidRequest: steps of the course take no time, or less.
        """
        self._median, self._scatter = median, scatter
        self._course = _level_after(course) if course else None
        self._chance = random.Random(seed)
        self._now, self._off = 0.0, self._draw()

    def at(self, now: float) -> float:
        """How many times longer a step takes that begins now."""
        if self._scatter and now > self._now:
            kept = math.exp((self._now - now) / SPELL_SECONDS)
            self._now, self._off = now, kept * self._off + math.sqrt(1 - kept * kept) * self._draw()
        return self._median * (self._course.at(now) if self._course else 1.0) * math.exp(self._off)

    def _draw(self) -> float:
        return self._chance.gauss(0.0, self._scatter)


def _level_after(points: Sequence[tuple[float, float]]) -> Curve:
    """Through the points, and no further up or down after the last: one more, as high, says so."""
    if not all(times > 0 for _, times in points):
        raise InvalidRequest(
            f"steps take more than 0 times as long as in the median, not {min(t for _, t in points):g}"
        )
    last, times = max(points)
    return Curve([*points, (last + 1.0, times)])
