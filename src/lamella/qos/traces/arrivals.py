"""A trace: when requests come, and how many tokens they read and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lamella.core.errors import InvalidRequest

DEFAULT_CLASS = "interactive"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        seconds: when it comes, from the start of the trace.
        n_prompt: tokens that it brings, at least 1.
        n_generated: tokens that are written for it, at least 1.
        class_name: its class of requests, as objectives name them.
    """

    seconds: float
    n_prompt: int
    n_generated: int
    class_name: str = DEFAULT_CLASS

    def fault(self) -> str | None:
        """What is wrong with it, in words; None for nothing."""
        if not 0 <= self.seconds < float("inf"):
            return f"the time must be a finite number of seconds from 0, not {self.seconds}"
        if self.n_prompt < 1 or self.n_generated < 1:
            return f"{self.n_prompt} prompt and {self.n_generated} generated tokens; both must be at least 1"
        return None if self.class_name else "the class has no name"


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their times.

    Attributes:
        name: where it comes from: a file, or how it was made.
        arrivals: ascending by time.
    """

    name: str
    arrivals: Sequence[Arrival]

    def __post_init__(self) -> None:
        for i, arrival in enumerate(self.arrivals):
            if fault := arrival.fault():
                raise InvalidRequest(f"{self.name}, request {i + 1}: {fault}")
        for i, (before, after) in enumerate(pairwise(self.arrivals)):
            if after.seconds < before.seconds:
                raise InvalidRequest(
                    f"{self.name}, request {i + 2} comes at {after.seconds} s, before the one above it"
                )

    @property
    def seconds(self) -> float:
        """When the last request comes; 0 for an empty trace."""
        return self.arrivals[-1].seconds if self.arrivals else 0.0

    def classes(self) -> dict[str, int]:
        """Requests of each class, by name."""
        return dict(sorted(Counter(a.class_name for a in self.arrivals).items()))

    def faster(self, factor: float) -> Trace:
        """The same requests, closer together by ``factor``.

        Raises:
            InvalidRequest: the factor is not above 0.
        """
        if not factor > 0:
            raise InvalidRequest(f"a trace can be made faster by a factor above 0, not {factor}")
        moved = tuple(replace(a, seconds=a.seconds / factor) for a in self.arrivals)
        return Trace(f"{self.name}, {factor:g} times as fast", moved)

    def until(self, seconds: float) -> Trace:
        """The requests that come before a time."""
        return Trace(self.name, tuple(a for a in self.arrivals if a.seconds < seconds))
