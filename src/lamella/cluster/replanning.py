"""When layers move to other machines: a pure decision.

    decision = decide(Record(), View(now=10.0, current_seconds=None, other_seconds=0.4), ReplanLimits())
    decision.act                    # "wait": the node may be back in a moment

What must be is done soon and always: a placement whose node is away computes nothing.  What would only be better has to
be clearly better, for a while, some time after the last move, and within a budget.  So a node that comes and goes moves
layers a few times, and then is left out until the hour is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lamella.core.errors import InvalidRequest

BUDGET_SECONDS = 3600.0

Act = Literal["keep", "wait", "move", "stop"]
"""``keep`` what runs; ``wait`` for a node that is needed; ``move``; ``stop``, since nothing fits."""


@dataclass(frozen=True, slots=True)
class ReplanLimits:
    """How eager to be.

    Attributes:
        gain: by what share the time of a request has to be above that of another placement, for a move to it.
        hold_seconds: for so long must that be so, and so long ago the last move.
        grace_seconds: a node that is needed may be away for so long before its layers move.
        n_moves: in an hour; beyond it layers move only where they have to.
    """

    gain: float = 0.25
    hold_seconds: float = 30.0
    grace_seconds: float = 1.5
    n_moves: int = 12

    def __post_init__(self) -> None:
        if not (self.gain >= 0 and self.hold_seconds >= 0 and self.grace_seconds >= 0 and self.n_moves >= 0):
            raise InvalidRequest(
                f"limits of moves must be at least 0, not a gain of {self.gain:g}, {self.hold_seconds:g} s, "
                f"{self.grace_seconds:g} s and {self.n_moves} an hour"
            )


@dataclass(frozen=True, slots=True)
class View:
    """What there is now.

    Attributes:
        now: seconds of a clock that does not go back.
        current_seconds: of a request where layers are; None where that is impossible, or nothing runs.
        other_seconds: of a request where they would go; None where they fit nowhere, or are there already.
        is_asked_for: that other place is where somebody wants them, who need not have a reason.
        has_stopped: no engine runs, because nothing has fitted.
    """

    now: float
    current_seconds: float | None
    other_seconds: float | None
    is_asked_for: bool = False
    has_stopped: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What was before.

    Attributes:
        moves: when layers moved, oldest first; those that count still.
        lost_since: when the placement became impossible; None while it is possible.
        better_since: since when another would be clearly better.
    """

    moves: tuple[float, ...] = ()
    lost_since: float | None = None
    better_since: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do; ``record`` has it already."""

    act: Act
    record: Record
    why: str = ""


def decide(record: Record, view: View, limits: ReplanLimits) -> Decision:
    """What to do now.

    Args:
        record: that of the last decision.
    """
    recent = tuple(moment for moment in record.moves if moment > view.now - BUDGET_SECONDS)
    record = replace(record, moves=recent)
    if view.current_seconds is None:
        return _forced(record, view, limits)
    return _chosen(replace(record, lost_since=None), view, limits)


def _forced(record: Record, view: View, limits: ReplanLimits) -> Decision:
    since = view.now if record.lost_since is None else record.lost_since
    record = replace(record, lost_since=since, better_since=None)
    if view.now - since < limits.grace_seconds and not view.has_stopped:
        return Decision("wait", record, "a node is away")
    if view.other_seconds is None:
        return Decision("stop", record, "the model fits nowhere")
    return _move(record, view.now, "its node is away")


def _chosen(record: Record, view: View, limits: ReplanLimits) -> Decision:
    assert view.current_seconds is not None  # see decide
    other = view.other_seconds
    is_better = other is not None and (view.is_asked_for or view.current_seconds >= (1 + limits.gain) * other)
    if not is_better:
        return Decision("keep", replace(record, better_since=None))
    since = view.now if record.better_since is None else record.better_since
    record = replace(record, better_since=since)
    last = record.moves[-1] if record.moves else since
    if view.now - max(since, last) < limits.hold_seconds:
        return Decision("keep", record, "another placement is better, but not for long enough")
    if len(record.moves) >= limits.n_moves:
        return Decision("keep", record, f"layers have moved {len(record.moves)} times within an hour")
    return _move(record, view.now, "as asked for" if view.is_asked_for else "it is faster there")


def _move(record: Record, now: float, why: str) -> Decision:
    return Decision("move", Record((*record.moves, now)), why)
