"""What a policy says, and what it remembers from one decision to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from lamella.qos.policies.sample import Sample

LASTING_SECONDS = 3.0
"""A better variant must have been possible for so long."""
LONGEST_LASTING_SECONDS = 64.0
UNDONE_SECONDS = 10.0
"""A change to a better variant that lasted less was in vain; one that lasted longer was ended by another load."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a policy remembers.

    Attributes:
        variant: that runs, or was decided to.
        since: when it was decided.
        better_since: since when a better variant would do; None when none would.
        went_up_at: when it last changed to a better variant; None if never.
        lasting_seconds: for so long a better variant must have been possible; longer after a change that was undone.
        pressed_at: when memory was last short; None if never.
    """

    variant: str
    since: float = 0.0
    better_since: float | None = None
    went_up_at: float | None = None
    lasting_seconds: float = LASTING_SECONDS
    pressed_at: float | None = None

    def stays(self, better_since: float | None = None) -> PolicyState:
        """The same variant."""
        return replace(self, better_since=better_since)

    def goes_up(self, variant: str, now: float) -> PolicyState:
        """A better variant from now on."""
        return replace(self, variant=variant, since=now, better_since=None, went_up_at=now)

    def goes_down(self, variant: str, now: float) -> PolicyState:
        """A worse variant from now on; soon after going up, the next time up takes twice as long (no oscillation)."""
        went_up = self.went_up_at is not None and now - self.went_up_at < UNDONE_SECONDS
        lasting = min(LONGEST_LASTING_SECONDS, 2 * self.lasting_seconds) if went_up else LASTING_SECONDS
        return replace(self, variant=variant, since=now, better_since=None, lasting_seconds=lasting)

    def makes_up(self, variant: str, now: float) -> PolicyState:
        """Another variant for a while, for streams that were slow; that says nothing against the better ones."""
        return replace(self, variant=variant, since=now)


@dataclass(frozen=True, slots=True)
class Decision:
    """What should run from now on.

    Attributes:
        variant: that should run.
        reason: why, in words.
        state: what the policy wants to be given at the next sample.
    """

    variant: str
    reason: str
    state: PolicyState


class Policy(Protocol):
    """Decides; equal states and samples give equal decisions."""

    @property
    def name(self) -> str:
        """As the command line has it."""

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        """Which variant should run."""
