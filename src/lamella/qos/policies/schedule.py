"""Policy ``oracle``: a plan that was made knowing what comes (``simulator.oracle`` makes it)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.sample import Sample


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which variant runs when.

    Attributes:
        starts: times, ascending from 0.
        variants: from each of them on.
    """

    starts: Sequence[float]
    variants: Sequence[str]

    @property
    def name(self) -> str:
        return "oracle"

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        wanted = self.variants[max(0, bisect_right(self.starts, sample.time) - 1)]
        if wanted == state.variant:
            return Decision(wanted, "as planned", state)
        return Decision(wanted, "planned, knowing what comes", state.goes_down(wanted, sample.time))
