"""How fast a node answers, compared with how fast it did: like with like.

    pace = Pace()
    pace.answered(sent_bytes=4096, seconds=0.011)      # for each answer of its RPC server
    pace.slowdown                                      # 1.0; 3.0 where the same takes three times as long

What a node is asked to compute grows with the tokens of a step, and so do the hidden states that are sent for it.  So
answers are compared with those to requests of about the same bytes.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable

from lamella.cluster.channel import Filter

N_RECENT = 32
"""Answers to requests of one size that are looked at together."""
LEAST_SECONDS = 0.002
"""Shorter answers are no computing, or are so short that noise is most of them."""


class Pace:
    """Of one node, since its layers were put there."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._best: dict[int, float] = {}
        self._last = 0

    def answered(self, sent_bytes: int, seconds: float) -> None:
        """An answer came.

        Args:
            sent_bytes: since the answer before.
            seconds: since the last of them.
        """
        if seconds < LEAST_SECONDS:
            return
        size = self._last = sent_bytes.bit_length()
        recent = self._recent.setdefault(size, deque(maxlen=N_RECENT))
        recent.append(seconds)
        if len(recent) == N_RECENT:
            self._best[size] = min(self._best.get(size, float("inf")), statistics.median(recent))

    @property
    def slowdown(self) -> float:
        """How many times as long the last answers took as the best ones of the same size; 1 where nothing is known."""
        best, now = self._best_and_now
        return now / best

    @property
    def lost_seconds(self) -> float:
        """By how much the last answers took longer than the best ones of the same size."""
        best, now = self._best_and_now
        return now - best

    @property
    def n_bytes(self) -> float:
        """About so many were sent for each of the last answers."""
        return 0.75 * (1 << self._last)

    @property
    def _best_and_now(self) -> tuple[float, float]:
        """The second is never below the first, of which it was one."""
        best = self._best.get(self._last)
        return (1.0, 1.0) if best is None else (best, statistics.median(self._recent[self._last]))


class Stopwatch:
    """Two filters of a connection (``channel.Filter``) that tell a ``Pace`` how long answers take."""

    def __init__(self, pace: Pace, there: Filter, back: Filter, clock: Callable[[], float] = time.perf_counter) -> None:
        """Around the filters ``there``, of what is sent to the node, and ``back``."""
        self._pace, self._there, self._back, self._clock = pace, there, back, clock
        self._sent_bytes, self._sent_at = 0, 0.0

    def there(self, data: bytes) -> Iterable[bytes | memoryview]:
        """Of what is sent."""
        self._sent_bytes, self._sent_at = self._sent_bytes + len(data), self._clock()
        return self._there(data)

    def back(self, data: bytes) -> Iterable[bytes | memoryview]:
        """Of what comes."""
        if self._sent_bytes:
            self._pace.answered(self._sent_bytes, self._clock() - self._sent_at)
            self._sent_bytes = 0
        return self._back(data)
