"""Policy ``static``: one variant for ever."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.sample import Sample


@dataclass(frozen=True, slots=True)
class Static:
    """Always the same; what others are compared with."""

    variant: str

    @property
    def name(self) -> str:
        return f"static:{self.variant}"

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        if state.variant == self.variant:
            return Decision(self.variant, "it is the one that was asked for", state)
        return Decision(self.variant, "it is the one that was asked for", state.goes_down(self.variant, sample.time))
