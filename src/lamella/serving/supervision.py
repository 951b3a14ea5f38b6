"""How an engine is kept alive, and what there is to tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lamella.batching.messages import EngineMessage, Generate, Hello, Status, Switched
from lamella.core.errors import InvalidRequest
from lamella.serving.child import ENGINE_COMMAND
from lamella.serving.restarts import RestartLimits
from lamella.serving.watch import Patience


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """How an engine is kept alive.

    Attributes:
        max_queue: requests that may wait beside those that the engine runs at once.
        poison_limit: engines that may die over one request in a row, before it is refused.
        stop_seconds: for an engine to end after it was asked to.
        patience: when an engine hangs.
        restarts: how often another is started.
        command: of the engine process.
        excuse: whether an engine that has just ended, or has not started, did so for what no request and no model
            is to blame for: a machine that computes for it is away.
    """

    max_queue: int = 64
    poison_limit: int = 3
    stop_seconds: float = 5.0
    patience: Patience = field(default_factory=Patience)
    restarts: RestartLimits = field(default_factory=RestartLimits)
    command: Sequence[str] = ENGINE_COMMAND
    excuse: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        if self.max_queue < 0:
            raise InvalidRequest(f"max_queue must be at least 0, not {self.max_queue}")
        if self.poison_limit < 1:
            raise InvalidRequest(f"poison_limit must be at least 1, not {self.poison_limit}")


@dataclass(frozen=True, slots=True)
class EngineDied:
    """An engine ended that nobody had asked to, or could not start.

    Attributes:
        why: in some words; may be told to clients.
        last_lines: what it wrote last, for operators.
    """

    why: str
    last_lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.why}; its last lines:\n" + "\n".join(self.last_lines) if self.last_lines else self.why


EngineEvent = Hello | Switched | Status | EngineDied
"""What may interest a dashboard: an engine is up, runs at another variant, lives, died."""


class TrafficWatcher(Protocol):
    """Hears what goes on between front and engine, each soon after it happened and in order."""

    def submitted(self, request: Generate) -> None:
        """A request came."""

    def heard(self, message: EngineMessage) -> None:
        """The engine says something."""

    def gone(self, number: int) -> None:
        """A request is over: it ended, failed, or its reader left."""
