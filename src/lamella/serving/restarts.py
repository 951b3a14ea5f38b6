"""When an engine that died is started again: a pure decision.

An engine was *fruitful* if it did any work, or lived for ``settled_seconds``.  Fruitful ones are replaced at once,
however they died.  After others the pauses grow, and in the end nothing is started any more: a model that cannot be
loaded, or a machine whose memory does not do, is for a person to look at.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """How patient to be.

    Attributes:
        n_restarts: most restarts within any ``window_seconds``.
        n_fruitless: engines without fruit in a row, after which nothing is started any more.
        first_pause_seconds, longest_pause_seconds: after such an engine; each pause is twice the one before.
        settled_seconds: an engine that answered for so long counts as fruitful without any work.
    """

    n_restarts: int = 60
    window_seconds: float = 120.0
    n_fruitless: int = 8
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 10.0
    settled_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.n_restarts < 0 or self.n_fruitless < 0:
            raise InvalidRequest(
                f"limits of restarts must be at least 0, not {self.n_restarts} restarts and {self.n_fruitless} in a row"
            )

    def pause_seconds(self, n_fruitless: int) -> float:
        """How long to wait after so many engines without fruit in a row; 0 after none."""
        if not n_fruitless:
            return 0.0
        longest: float = min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(n_fruitless - 1, 60))
        return longest


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """What was done before.

    Attributes:
        restarts: when, oldest first; those that matter still.
        n_fruitless: engines without fruit in a row, up to now.
    """

    restarts: tuple[float, ...] = ()
    n_fruitless: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start an engine after a pause; ``history`` has it already."""

    pause_seconds: float
    history: RestartHistory


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Start nothing any more; ``reason`` is a sentence about the limit that was met."""

    reason: str


def decide(history: RestartHistory, limits: RestartLimits, *, now: float, was_fruitful: bool) -> Restart | GiveUp:
    """What to do about an engine that has just died.

    Args:
        now: seconds of a clock that does not go back.
        was_fruitful: see above.
    """
    n_fruitless = 0 if was_fruitful else history.n_fruitless + 1
    if n_fruitless > limits.n_fruitless:
        return GiveUp(f"{n_fruitless} engines in a row ended before they did any work")
    pause = limits.pause_seconds(n_fruitless)
    at = now + pause
    recent = tuple(moment for moment in history.restarts if moment > at - limits.window_seconds)
    if len(recent) >= limits.n_restarts:
        return GiveUp(f"the engine was restarted {len(recent)} times in {limits.window_seconds:.0f} s")
    return Restart(pause, RestartHistory((*recent, at), n_fruitless))
