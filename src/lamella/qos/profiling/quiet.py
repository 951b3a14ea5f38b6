"""Measurements that others did not disturb: what others take of the processor is seen, and such a point is repeated.

A point that others disturb makes a variant look slower than it is, and a policy that believes it goes down too early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lamella.qos.readers.processor import ProcessorTimes, read_processor, taken_by_others
from lamella.qos.readers.reading import Absent

T = TypeVar("T")
MOST_OTHERS = 0.08
"""Share of the processor from which on others disturb: about what a desktop does beside."""
MOST_TRIES = 4


class Quiet:
    """Measures until nobody disturbs, or ``MOST_TRIES`` times; then the least disturbed counts.

    Attributes:
        most_others: largest share of the processor that others took while a point was measured that counts.
    """

    def __init__(self, look: Callable[[], ProcessorTimes | Absent] = read_processor) -> None:
        """Nothing is measured yet; ``look`` reads the processor's counters."""
        self._look = look
        self.most_others = 0.0

    def measure(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, undisturbed if that can be had."""
        tries: list[tuple[float, T]] = []
        while len(tries) < MOST_TRIES:
            before = self._look()
            found = work()
            tries.append((self._others(before), found))
            if tries[-1][0] <= MOST_OTHERS:
                break
        share, best = min(tries, key=lambda one: one[0])
        self.most_others = max(self.most_others, share)
        return best

    def _others(self, before: ProcessorTimes | Absent) -> float:
        after = self._look()
        if isinstance(before, Absent) or isinstance(after, Absent):
            return 0.0
        return taken_by_others(before, after)
