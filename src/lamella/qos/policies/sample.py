"""What is seen at one time: the load by class, the queue, and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClassSample:
    """Requests of one class, lately.

    Attributes:
        arrivals_per_second: as predicted for the near future.
        mean_prompt, long_prompt: tokens of prompts, and what 95 % of them stay below.
        mean_generated: tokens that are written for one.
        kept_share: of its requests lately had what they were promised; 1 while nobody knows.
        ttft_p95_seconds, tpot_p95_seconds: of requests that had them lately; None where none had.
        lengths: tokens that were written for the last requests, ascending.
    """

    arrivals_per_second: float
    mean_prompt: float
    long_prompt: float
    mean_generated: float
    ttft_p95_seconds: float | None = None
    tpot_p95_seconds: float | None = None
    kept_share: float = 1.0
    lengths: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """A request that writes.

    Attributes:
        class_name: its class.
        n_written: tokens so far; at least 1.
        seconds: since the first of them.
    """

    class_name: str
    n_written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything that a policy looks at.

    Attributes:
        time: of a clock that only goes forward, in seconds.
        classes: those that have requests, by name.
        n_running, n_waiting: requests in the engine, with and without a slot.
        waiting_tokens: prompt tokens that are to be read before all of them write.
        slowdown: how many times longer a step takes than on a machine that does nothing else.
        available_bytes: what may still be allocated; None where that is not known.
        memory_stall: share of the time in which all processes waited for memory, 0 to 1; None where not known.
        is_own_stall: those are the processes of the engine's control group; False: of the whole machine.
        on_battery: the machine runs on battery.
        streams: requests that write.
    """

    time: float
    classes: Mapping[str, ClassSample] = field(default_factory=dict)
    n_running: int = 0
    n_waiting: int = 0
    waiting_tokens: int = 0
    slowdown: float = 1.0
    available_bytes: int | None = None
    memory_stall: float | None = None
    is_own_stall: bool = True
    on_battery: bool = False
    streams: Sequence[Stream] = ()

    @property
    def arrivals_per_second(self) -> float:
        """Of all classes."""
        return sum(c.arrivals_per_second for c in self.classes.values())


def slowdown_by_others(others_share: float | None) -> float:
    """How much longer steps take when others have this share of the processor: what is left does the same work.

    At most tenfold: beyond, the figure says more about the clock than about the load.
    """
    return 1 / max(0.1, 1 - (others_share or 0.0))
