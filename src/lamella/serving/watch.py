"""Whether an engine process hangs: a pure decision over what was heard of it."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an engine may be quiet.

    Attributes:
        hang_seconds: without a word, once it is up.
        step_seconds: for one step of the model.
        load_seconds: for loading.
    """

    hang_seconds: float = 15.0
    step_seconds: float = 300.0
    load_seconds: float = 1800.0

    def __post_init__(self) -> None:
        if min(self.hang_seconds, self.step_seconds, self.load_seconds) <= 0:
            raise InvalidRequest("how long an engine may be quiet must be above 0 seconds")

    @property
    def tick_seconds(self) -> float:
        """How often to look."""
        return min(1.0, self.hang_seconds / 4)


class Watch:
    """One engine process, from its start on."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._heard_at = self._looked_at = now
        self._step_seconds = 0.0
        self._is_up = False

    def up(self, now: float) -> None:
        """It has loaded its model."""
        self._is_up, self._heard_at = True, now

    def heard(self, now: float) -> None:
        """It said something."""
        self._heard_at = now

    def in_step(self, step_seconds: float) -> None:
        """It said how long its step has run."""
        self._step_seconds = step_seconds

    def complaint(self, now: float) -> str:
        """Why the engine has to go, or "".  To be called every ``tick_seconds``.

        Time in which this was not called is not held against the engine: the front itself stood still then, and what
        the engine said meanwhile has not been read.
        """
        late_seconds = now - self._looked_at - self._patience.tick_seconds
        self._heard_at += max(0.0, late_seconds)
        self._looked_at = now
        quiet_seconds = now - self._heard_at
        if not self._is_up:
            limit = self._patience.load_seconds
            return f"it has not loaded the model within {limit:g} s" if quiet_seconds > limit else ""
        if quiet_seconds > self._patience.hang_seconds:
            return f"no sign of life for {quiet_seconds:.1f} s"
        if self._step_seconds > self._patience.step_seconds:
            limit = self._patience.step_seconds
            return f"a step of the model has run for {self._step_seconds:.1f} s; {limit:g} s are allowed"
        return ""
