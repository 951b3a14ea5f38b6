"""The plan that knows the trace: which variant should have run when.

Found by search: begin with the best variant everywhere, go a rung down where most promises are broken until enough are
kept, then try to go up again where that saves most.  Every step is a whole replay, so the plan keeps what it says, but
that no better one exists is not proven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lamella.qos.policies.schedule import Schedule
from lamella.qos.policies.setting import Setting
from lamella.qos.simulator.outcome import Outcome, met
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.traces.arrivals import Trace

SEGMENT_SECONDS = 5.0
ATTAINMENT = 0.95
"""What a 95th percentile promises."""


def plan_oracle(
    trace: Trace,
    setting: Setting,
    options: ReplayOptions | None = None,
    *,
    segment_seconds: float = SEGMENT_SECONDS,
    attainment: float = ATTAINMENT,
) -> Schedule:
    """A schedule that keeps ``attainment`` of the promises with little divergence.

    Where none does, the schedule is the one that the search ended with: the worst variant wherever promises are broken.

    Args:
        segment_seconds: the variant may change so often.
    """
    search = _Search(trace, setting, options or ReplayOptions(), segment_seconds, attainment)
    search.go_down()
    search.go_up()
    return search.schedule(search.ranks)


class _Search:
    """A rung for each segment of the trace."""

    def __init__(
        self, trace: Trace, setting: Setting, options: ReplayOptions, segment_seconds: float, attainment: float
    ) -> None:
        self._trace, self._setting, self._options = trace, setting, options
        self._seconds, self._attainment = segment_seconds, attainment
        self.ranks = [0] * (math.floor(trace.seconds / segment_seconds) + 1)

    def schedule(self, ranks: Sequence[int]) -> Schedule:
        starts = tuple(i * self._seconds for i in range(len(ranks)))
        return Schedule(starts, tuple(self._setting.rungs[rank].name for rank in ranks))

    def go_down(self) -> None:
        """Lower what is to blame, a rung at a time, until enough is kept or nothing is left to lower."""
        while (outcome := self._replay(self.ranks)).attainment < self._attainment:
            blame = self._blame(outcome)
            lowest = len(self._setting.rungs) - 1
            guilty = [i for i, n in enumerate(blame) if n and self.ranks[i] < lowest]
            if not guilty:
                return
            most = max(blame[i] for i in guilty)
            for i in guilty:
                if 2 * blame[i] >= most:
                    self.ranks[i] += 1

    def go_up(self) -> None:
        """Raise segments again, the one with most divergence first, as long as enough is kept; each is tried until
        it fails once."""
        if self._replay(self.ranks).attainment < self._attainment:
            return
        open_segments = {i for i, rank in enumerate(self.ranks) if rank}
        while open_segments:
            weights = self._tokens(self._replay(self.ranks))
            i = max(open_segments, key=lambda i: (self._gain(self.ranks[i]) * weights[i], -i))
            raised = [*self.ranks[:i], self.ranks[i] - 1, *self.ranks[i + 1 :]]
            if self._replay(raised).attainment >= self._attainment:
                self.ranks = raised
            if raised is not self.ranks or not self.ranks[i]:
                open_segments.discard(i)

    def _gain(self, rank: int) -> float:
        """Divergence that one rung up saves; where it is not known every rung is worth the same."""
        here, above = self._setting.rungs[rank].kl, self._setting.rungs[rank - 1].kl
        return 1.0 if here is None or above is None else here - above

    def _replay(self, ranks: Sequence[int]) -> Outcome:
        return replay(self._trace, self._setting, self.schedule(ranks), self._options)

    def _segment(self, time: float) -> int:
        return min(len(self.ranks) - 1, int(time / self._seconds))

    def _blame(self, outcome: Outcome) -> list[int]:
        """Broken promises by the segments in which their requests were there."""
        blame = [0] * len(self.ranks)
        for one in outcome.served:
            if not met(one, self._setting.objectives):
                lived = one.ttft_seconds + one.tpot_seconds * sum(one.tokens.values()) if not one.failure else 0.0
                for i in range(self._segment(one.arrived), self._segment(one.arrived + lived) + 1):
                    blame[i] += 1
        return blame

    def _tokens(self, outcome: Outcome) -> list[int]:
        """Tokens by the segment in which their request came."""
        tokens = [0] * len(self.ranks)
        for one in outcome.served:
            tokens[self._segment(one.arrived)] += sum(one.tokens.values())
        return tokens
