"""Policy ``threshold``: a step down the ladder when something is missed, a step up when there is much room.

Looks at what was measured and predicts nothing; what ``predictive`` is compared with, and what remains where a profile
is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lamella.qos.policies.constraints import allowed
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.setting import Rung, Setting

ROOM = 0.7
"""Below this share of every ceiling there is room for a better variant."""
SETTLE_SECONDS = 2.0
"""A change shows in what is measured only after so long."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Chooses by what was measured lately."""

    setting: Setting

    @property
    def name(self) -> str:
        return "threshold"

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        choice = allowed(self.setting, state, sample)
        if choice.pressed:
            state = replace(state, pressed_at=sample.time)
        current = self.setting.rung(state.variant)
        if current not in choice.rungs:
            target = _nearest(current, choice.rungs)
            reason = choice.pressed or "it must not run now: memory, a quality floor or the power ceiling"
            moved = state.goes_up if target.rank < current.rank else state.goes_down
            return Decision(target.name, reason, moved(target.name, sample.time))
        share, what = max(self._shares(sample), default=(0.0, "nothing was measured"))
        if share > 1:
            return self._down(state, sample, current, choice.rungs, what)
        return self._up(state, sample, current, choice.rungs, share)

    def _down(self, state: PolicyState, sample: Sample, current: Rung, rungs: Sequence[Rung], missed: str) -> Decision:
        lower = [r for r in rungs if r.rank > current.rank]
        if not lower or sample.time - state.since < SETTLE_SECONDS:
            return Decision(current.name, f"missed, but nothing to do yet: {missed}", state.stays())
        return Decision(lower[0].name, f"missed: {missed}", state.goes_down(lower[0].name, sample.time))

    def _up(self, state: PolicyState, sample: Sample, current: Rung, rungs: Sequence[Rung], share: float) -> Decision:
        higher = [r for r in rungs if r.rank < current.rank]
        if not higher or share > ROOM:
            return Decision(current.name, f"at {share:.0%} of what is promised", state.stays())
        since = sample.time if state.better_since is None else state.better_since
        if sample.time - since < state.lasting_seconds:
            return Decision(current.name, "there is room, but only lately", state.stays(since))
        reason = f"at {share:.0%} of what is promised for {sample.time - since:.0f} s"
        return Decision(higher[-1].name, reason, state.goes_up(higher[-1].name, sample.time))

    def _shares(self, sample: Sample) -> Iterator[tuple[float, str]]:
        """What was measured, as shares of what is promised."""
        for name, seen in sample.classes.items():
            wanted = self.setting.objectives.classes.get(name)
            if wanted is None:
                continue
            for what, value, ceiling in (
                ("time per token", seen.tpot_p95_seconds, wanted.tpot_seconds),
                ("time to first token", seen.ttft_p95_seconds, wanted.ttft_seconds),
            ):
                if value is not None and ceiling is not None:
                    yield value / ceiling, f"p95 {what} of {name} {value * 1000:.0f} of {ceiling * 1000:.0f} ms"


def _nearest(current: Rung, rungs: Sequence[Rung]) -> Rung:
    """The best one below the current; if all are above, the lowest of them."""
    return next((r for r in rungs if r.rank > current.rank), rungs[-1])
