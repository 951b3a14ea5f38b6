"""How much longer tokens took live than in virtual time: what the machine did meanwhile, by requests of both.

The profile is from before; minutes and hours later a shared machine computes up to a fifth slower or faster, and the
front and the clients take their part of the cores.

usual_pace([(live, simulated)])     # 1.06
slow_pace([(live, simulated)])      # 1.18: 95 % of the requests came in no slower minute
course((live, simulated))           # ((30.0, 0.98), (90.0, 1.03)): the first minute was quicker than usual
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lamella.qos.simulator.outcome import Served
from lamella.qos.watching import p95

Sides = tuple[Sequence[Served], Sequence[Served]]
"""The requests of one way, live and simulated, in the same order."""
BLOCK_SECONDS = 60.0
REACH_SECONDS = 45.0
"""Requests so long before and after the middle of a minute say what it was like; neighbours share some of them."""
LEAST_REQUESTS = 3
"""Fewer say nothing of a minute."""


def usual_pace(ways: Iterable[Sides]) -> float:
    """Median over requests of live by simulated time per token; 1 without any."""
    found = [ratio for sides in ways for ratio in _by_request(*sides).values()]
    return statistics.median(found) if found else 1.0


def slow_pace(ways: Iterable[Sides]) -> float:
    """The pace of minutes that 95 % of the requests did not come in a slower one than; at least 1."""
    found: list[float] = []
    for live, simulated in ways:
        minutes: dict[int, list[float]] = defaultdict(list)
        for i, ratio in _by_request(live, simulated).items():
            minutes[int(live[i].arrived // BLOCK_SECONDS)].append(ratio)
        for ratios in minutes.values():
            found += [statistics.median(ratios)] * len(ratios)
    return max(1.0, p95(found) or 1.0)


def course(sides: Sides) -> tuple[tuple[float, float], ...]:
    """Middles of minutes, and how many times longer than usual tokens took around them.

    A request counts at the middle of its writing.  Minutes with too few of them are left out.
    """
    live, simulated = sides
    ratios = _by_request(live, simulated)
    middles = {i: _middle(live[i]) for i in ratios}
    usual = usual_pace([sides])
    found = []
    for minute in range(math.ceil(max(middles.values(), default=0.0) / BLOCK_SECONDS)):
        middle = (minute + 0.5) * BLOCK_SECONDS
        beside = [ratios[i] for i, at in middles.items() if abs(at - middle) <= REACH_SECONDS]
        if len(beside) >= LEAST_REQUESTS:
            found.append((middle, statistics.median(beside) / usual))
    return tuple(found)


def _middle(one: Served) -> float:
    """When half of it was written."""
    return one.arrived + one.ttft_seconds + one.tpot_seconds * sum(one.tokens.values()) / 2


def _by_request(live: Sequence[Served], simulated: Sequence[Served]) -> dict[int, float]:
    """Live by simulated time per token, of requests that both served and that wrote more than one token."""
    pairs = enumerate(zip(live, simulated, strict=True))
    return {i: a.tpot_seconds / b.tpot_seconds for i, (a, b) in pairs if _counts(a) and _counts(b)}


def _counts(one: Served) -> bool:
    return not one.failure and one.tpot_seconds > 0
