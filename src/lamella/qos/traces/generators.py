"""Traces made by chance: Poisson arrivals whose rate is constant, comes in bursts, or follows the day.

    trace = poisson(Load(rate=2.0, seconds=600.0), seed=1)

Equal arguments and seeds give equal traces.  Lengths are log-normal, as those of public traces nearly are (Azure LLM
inference trace 2023): many short ones and a long tail.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lamella.core.errors import InvalidRequest
from lamella.qos.traces.arrivals import DEFAULT_CLASS, Arrival, Trace

DAY_SECONDS = 86_400.0
MOST_REQUESTS = 5_000_000
"""Of a trace made by chance: half a gigabyte of them.  A day at 58 a second."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a request: log-normal around a median, within bounds.

    Attributes:
        median: half of the requests have fewer.
        spread: standard deviation of the logarithm; 0 for all equal.
        least, most: bounds.
    """

    median: int
    spread: float = 0.6
    least: int = 1
    most: int = 2048

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.median <= self.most or self.spread < 0:
            raise InvalidRequest(
                f"lengths need 1 <= least <= median <= most and a spread from 0, not least {self.least}, "
                f"median {self.median}, most {self.most}, spread {self.spread}"
            )

    def draw(self, chance: random.Random) -> int:
        """One length."""
        drawn = round(self.median * math.exp(self.spread * chance.gauss(0.0, 1.0)))
        return min(self.most, max(self.least, drawn))


@dataclass(frozen=True, slots=True)
class Load:
    """What comes.

    Attributes:
        rate: requests a second: the mean, or for bursts the rate between them.
        seconds: length of the trace.
        prompt, generated: tokens.
        classes: share of each class; they need not add up to 1.
    """

    rate: float
    seconds: float
    prompt: Lengths = field(default_factory=lambda: Lengths(128))
    generated: Lengths = field(default_factory=lambda: Lengths(64, most=512))
    classes: Mapping[str, float] = field(default_factory=lambda: {DEFAULT_CLASS: 1.0})

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf or not 0 < self.seconds < math.inf:
            raise InvalidRequest(f"a rate and a length above 0 are needed, not {self.rate}/s and {self.seconds} s")
        if not self.classes or min(self.classes.values()) < 0 or not sum(self.classes.values()) > 0:
            raise InvalidRequest(f"shares of classes must be from 0 and not all 0: {dict(self.classes)}")


def poisson(load: Load, seed: int = 0) -> Trace:
    """Arrivals at a constant mean rate, independent of each other.

    Raises:
        InvalidRequest: more of them than ``MOST_REQUESTS``, as of the traces below.
    """
    return _thinned(f"poisson:rate={load.rate:g},seed={seed}", load, lambda _: load.rate, load.rate, seed)


def bursts(load: Load, *, peak: float, every: float = 60.0, length: float = 15.0, seed: int = 0) -> Trace:
    """``load.rate`` with bursts.

    Args:
        peak: requests a second within a burst.
        every: seconds from one burst's start to the next; the first starts after half of the quiet time.
        length: seconds of a burst.

    Raises:
        InvalidRequest: the bursts are longer than the time between their starts, or the peak is below the rate.
    """
    if not 0 < length < every or not load.rate <= peak < math.inf:
        raise InvalidRequest(
            f"bursts need 0 < length < every and a peak from the rate on, not length {length}, every {every}, "
            f"peak {peak}, rate {load.rate}"
        )
    quiet = (every - length) / 2

    def rate_at(time: float) -> float:
        return peak if quiet <= time % every < quiet + length else load.rate

    return _thinned(f"bursts:rate={load.rate:g},peak={peak:g},seed={seed}", load, rate_at, peak, seed)


def day(load: Load, *, swing: float = 0.8, period: float = DAY_SECONDS, seed: int = 0) -> Trace:
    """A rate that rises and falls as a sine around ``load.rate``, lowest at the start.

    Args:
        swing: how far it goes up and down, as a share of the mean, 0 to 1.
        period: seconds of a day; shorter ones press a day into less time.

    Raises:
        InvalidRequest: a swing outside 0 to 1, or no period.
    """
    if not 0 <= swing <= 1 or not period > 0:
        raise InvalidRequest(f"a day needs a swing from 0 to 1 and a period above 0, not {swing} and {period}")

    def rate_at(time: float) -> float:
        return load.rate * (1 - swing * math.cos(2 * math.pi * time / period))

    return _thinned(f"day:rate={load.rate:g},seed={seed}", load, rate_at, load.rate * (1 + swing), seed)


def _thinned(name: str, load: Load, rate_at: Callable[[float], float], largest: float, seed: int) -> Trace:
    """Arrivals at the largest rate, each kept with the share that its rate has of that (Lewis and Shedler).

    Raises:
        InvalidRequest: more requests than a trace has.
    """
    if largest * load.seconds > MOST_REQUESTS:
        raise InvalidRequest(
            f"{largest:g} requests/s for {load.seconds:g} s are about {largest * load.seconds:.3g} requests; "
            f"a trace has at most {MOST_REQUESTS:,}"
        )
    chance = random.Random(seed)
    names, shares = list(load.classes), list(load.classes.values())
    arrivals, time = [], chance.expovariate(largest)
    while time < load.seconds:
        if chance.random() * largest < rate_at(time):
            n_prompt, n_generated = load.prompt.draw(chance), load.generated.draw(chance)
            arrivals.append(Arrival(time, n_prompt, n_generated, chance.choices(names, shares)[0]))
        time += chance.expovariate(largest)
    return Trace(name, tuple(arrivals))
