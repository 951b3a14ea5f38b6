"""What requests did lately, turned into the load that a policy is shown.

    watch.arrived(now, "interactive", n_prompt=120)
    watch.began(now, "interactive", ttft_seconds=0.4)
    watch.ended(now, "interactive", n_generated=50, tpot_seconds=0.06, kept=True)
    watch.classes(now)

The simulator and the server feed the same object, so that a policy sees the same in both.  Times come from the caller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from lamella.qos.policies.sample import ClassSample

LONG_SECONDS = 10.0
"""Window of the rate that is sure."""
SHORT_SECONDS = 2.0
"""Window of the rate that is quick."""
SURE = 1.0
"""A short window tells of a burst where it holds so many standard deviations more than the long one expects."""
LATELY_SECONDS = 10.0
"""Latencies are of requests within this time."""
N_LENGTHS = 64
"""Lengths are of so many requests."""
N_KEPT = 100
"""What was kept is a running mean over about so many requests."""
USUAL_GENERATED = 64.0
"""Tokens that a request is taken to write before any has ended."""


@dataclass(slots=True)
class _Watched:
    """One class."""

    arrivals: deque[float] = field(default_factory=deque)
    prompts: deque[int] = field(default_factory=lambda: deque(maxlen=N_LENGTHS))
    generated: deque[int] = field(default_factory=lambda: deque(maxlen=N_LENGTHS))
    ttfts: deque[tuple[float, float]] = field(default_factory=deque)
    tpots: deque[tuple[float, float]] = field(default_factory=deque)
    kept_share: float = 1.0


class LoadWatch:
    """Counts what requests do.  Times given to it never go back.

    What is too old to count is dropped as new things come: nobody may ever ask for ``classes``.
    """

    def __init__(self, start: float = 0.0) -> None:
        """Begin to watch at ``start``."""
        self._start = start
        self._classes: dict[str, _Watched] = {}

    def arrived(self, now: float, class_name: str, n_prompt: int) -> None:
        """A request came."""
        watched = self._classes.setdefault(class_name, _Watched())
        watched.arrivals.append(now)
        _drop_old_arrivals(watched.arrivals, now)
        watched.prompts.append(n_prompt)

    def began(self, now: float, class_name: str, ttft_seconds: float) -> None:
        """A request has its first token."""
        watched = self._classes.setdefault(class_name, _Watched())
        watched.ttfts.append((now, ttft_seconds))
        _drop_before(watched.ttfts, now - LATELY_SECONDS)

    def ended(self, now: float, class_name: str, n_generated: int, tpot_seconds: float | None, *, kept: bool) -> None:
        """A request has its last token; one with a single token has no time per token.

        Args:
            kept: it had what its class was promised.
        """
        watched = self._classes.setdefault(class_name, _Watched())
        watched.generated.append(n_generated)
        watched.kept_share += (kept - watched.kept_share) / N_KEPT
        if tpot_seconds is not None:
            watched.tpots.append((now, tpot_seconds))
            _drop_before(watched.tpots, now - LATELY_SECONDS)

    def classes(self, now: float) -> dict[str, ClassSample]:
        """The classes that had a request within the long window, or have latencies of lately."""
        return {n: s for n, w in self._classes.items() if (s := self._sample(w, now)) is not None}

    def _sample(self, watched: _Watched, now: float) -> ClassSample | None:
        _drop_before(watched.ttfts, now - LATELY_SECONDS)
        _drop_before(watched.tpots, now - LATELY_SECONDS)
        _drop_old_arrivals(watched.arrivals, now)
        if not watched.arrivals and not watched.ttfts and not watched.tpots:
            return None
        prompts, generated = watched.prompts, watched.generated
        return ClassSample(
            arrivals_per_second=self._rate(watched.arrivals, now),
            mean_prompt=sum(prompts) / len(prompts) if prompts else 1.0,
            long_prompt=p95(prompts) or 1.0,
            mean_generated=sum(generated) / len(generated) if generated else USUAL_GENERATED,
            ttft_p95_seconds=p95(value for _, value in watched.ttfts),
            tpot_p95_seconds=p95(value for _, value in watched.tpots),
            kept_share=watched.kept_share,
            lengths=sorted(generated),
        )

    def _rate(self, arrivals: deque[float], now: float) -> float:
        """The long window's rate; the short one's where that is more than chance explains."""
        seen = max(1.0, min(LONG_SECONDS, now - self._start))
        usual = len(arrivals) / seen
        n_short = 0
        for time in reversed(arrivals):
            if time <= now - SHORT_SECONDS:
                break
            n_short += 1
        short = min(SHORT_SECONDS, seen)
        surely = n_short - SURE * math.sqrt(n_short)
        return max(usual, surely / short)


def p95(values: Iterable[float]) -> float | None:
    """The smallest value that 95 % are not above; None of nothing."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None


def _drop_old_arrivals(arrivals: deque[float], now: float) -> None:
    while arrivals and arrivals[0] <= now - LONG_SECONDS:
        arrivals.popleft()


def _drop_before(entries: deque[tuple[float, float]], time: float) -> None:
    while entries and entries[0][0] < time:
        entries.popleft()
