"""Wait until a plan fits: LSAQ's pause, when not even the smallest plan fits the memory there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit

POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Progress of a wait.

    Attributes:
        elapsed_seconds: since the wait began.
        reason: why the last try failed; holds what is needed and what there was.
    """

    elapsed_seconds: float
    reason: DoesNotFit


def wait_until_fits(
    try_plan: Callable[[int], Plan],
    read_budget: Callable[[], int],
    *,
    poll_seconds: float = POLL_SECONDS,
    timeout_seconds: float | None = None,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Read the budget and try to plan, again and again, until a plan fits.

    Args:
        try_plan: makes a plan for a budget in bytes, or raises DoesNotFit.
        read_budget: the memory there is now, in bytes.
        timeout_seconds: give up after this long; None waits for ever.
        on_wait: told after each failed try, before sleeping.

    Raises:
        DoesNotFit: the last one, when the time is up.
    """
    start = clock()
    while True:
        try:
            return try_plan(max(1, read_budget()))  # a budget of nothing does not fit; it is no wrong request here
        except DoesNotFit as reason:
            elapsed = clock() - start
            if timeout_seconds is not None and elapsed >= timeout_seconds:
                raise
            on_wait(Waiting(elapsed, reason))
        left = poll_seconds if timeout_seconds is None else min(poll_seconds, timeout_seconds - elapsed)
        sleep(left)
