"""An engine that computes nothing: it works as ``batching.scheduler`` does, and asks a profile how long steps take.

Requests get slots by ``steps.admit`` and steps are put together by ``steps.compose``, the same functions as in the real
engine.  While everybody writes and nobody waits for a slot that could become free, steps are all alike and are passed
over together, up to the next event; this is what makes a replay fast.

Not modelled: prefixes that requests share, a KV cache smaller than its slots, requests at variants of their own; and
that llama.cpp reads pieces of several prompts in one step one after the other where each sequence has cells of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lamella.batching import steps
from lamella.batching.speeds import Speeds
from lamella.batching.steps import Candidate
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.simulator.slowdown import Slowdown
from lamella.qos.traces.arrivals import Arrival


@dataclass(slots=True, eq=False)
class VirtualRequest:
    """One request inside.

    Attributes:
        n_read, n_written: tokens so far.
        first_token_at, ended_at: virtual time; 0 before.
        written_by: tokens by the variant that wrote them.
    """

    id: int
    arrival: Arrival
    priority: int
    n_read: int = 0
    n_written: int = 0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    written_by: dict[str, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return self.n_read + max(0, self.n_written - 1)

    @property
    def n_unread(self) -> int:
        return self.arrival.n_prompt - self.n_read

    def candidate(self, variant: str) -> Candidate:
        """As the step planner sees it."""
        is_writing = self.n_written > 0
        return Candidate(self.id, variant, self.n_unread or 1, is_writing, self.priority, self.id)


OnRequest = Callable[[VirtualRequest], None]


class VirtualEngine:
    """Slots, steps and the variant that runs.

    Attributes:
        now: virtual time in seconds.
        variant: that computes.
        n_steps: since the start.
        seconds_at: how long each variant was the one that runs, idle time included.
        slowdown_seen: how many times longer than in the profile the last step took.
    """

    def __init__(
        self,
        setting: Setting,
        variant: str,
        *,
        on_first_token: OnRequest,
        on_end: OnRequest,
        n_warm: int,
        slowdown: Slowdown | None = None,
    ) -> None:
        """An idle engine at time 0.

        Args:
            n_warm: variants that stay in memory, the running one included.
            slowdown: how much longer steps take than in the profile; None for as long.
        """
        self._setting, self._shape = setting, setting.engine
        self._on_first_token, self._on_end = on_first_token, on_end
        self._rung: Rung = setting.rung(variant)
        self._n_warm, self._slowdown = n_warm, slowdown or Slowdown()
        self._warm = [variant]
        self._wanted: tuple[float, str] | None = None
        self.running: dict[int, VirtualRequest] = {}
        self.waiting: dict[int, VirtualRequest] = {}
        self._speeds = Speeds()
        self.now = 0.0
        self.n_steps = self.n_switches = 0
        self.seconds_at: dict[str, float] = {}
        self.slowdown_seen = 1.0

    @property
    def variant(self) -> str:
        return self._rung.name

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, request: VirtualRequest) -> None:
        """A request comes."""
        self.waiting[request.id] = request

    def want(self, variant: str) -> None:
        """Change as soon as the variant is in memory, which takes no time if it is warm; the last wish counts."""
        if variant == self.variant:
            self._wanted = None
        elif self._wanted is None or self._wanted[1] != variant:
            ready = self.now + (0.0 if variant in self._warm else self._setting.rung(variant).profile.prepare_seconds)
            self._wanted = ready, variant

    def run_until(self, time: float) -> None:
        """Compute until ``time``; a step that has begun is finished, so it may end later."""
        while self.now < time:
            self._change()
            self._admit()
            if self.running:
                self._step(time)
            else:
                self._pass(time - self.now)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.seconds_at[self.variant] = self.seconds_at.get(self.variant, 0.0) + seconds

    def _change(self) -> None:
        if self._wanted is None or self.now < self._wanted[0]:
            return
        name, self._wanted = self._wanted[1], None
        self._rung = self._setting.rung(name)
        self._warm = [name, *(v for v in self._warm if v != name)][: self._n_warm]
        self.n_switches += 1
        self._pass(self._rung.profile.switch_seconds)

    def _admit(self) -> None:
        if not self.waiting:
            return
        decision = steps.admit(
            [r.candidate(self.variant) for r in self.running.values()],
            [r.candidate(self.variant) for r in self.waiting.values()],
            self._shape.n_sequences,
        )
        for number in decision.park:
            self.waiting[number] = self.running.pop(number)
        for number in decision.start:
            self.running[number] = self.waiting.pop(number)

    def _step(self, time: float) -> None:
        if all(r.n_written for r in self.running.values()):
            self._write_on(time)
        else:
            self._mixed_step()

    def _write_on(self, time: float) -> None:
        """All steps until the first request ends, or until one that begins before the next event is over."""
        requests = list(self.running.values())
        n = len(requests)
        depth = sum(r.depth for r in requests) / n
        slowdown = self.slowdown_seen = self._slowdown.at(self.now)
        first = slowdown * self._rung.speed.writing(n, depth)
        growth = slowdown * self._rung.speed.writing_growth(n)
        event = time if self._wanted is None else min(time, max(self.now, self._wanted[0]))
        n_end = min(r.arrival.n_generated - r.n_written for r in requests)
        k = min(n_end, _steps_to(event - self.now, first, growth))
        self._pass(k * first + growth * k * (k - 1) / 2)
        self.n_steps += k
        for request in requests:
            self._wrote(request, k)

    def _mixed_step(self) -> None:
        candidates = [r.candidate(self.variant) for r in self.running.values()]
        plan = steps.compose(
            candidates, self.variant, self._shape.n_batch, self._speeds.pace(self._shape.longest_step_seconds)
        )
        parts = [(self.running[number], n) for number, n in plan.parts]
        writers = [r for r, _ in parts if r.n_written]
        readers = [(r, n) for r, n in parts if not r.n_written]
        n_read = sum(n for _, n in readers)
        self.slowdown_seen = self._slowdown.at(self.now)
        seconds = self.slowdown_seen * self._rung.speed.mixed(
            len(writers),
            sum(r.depth for r in writers) / len(writers) if writers else 0.0,
            n_read,
            sum(n * r.n_read for r, n in readers) / n_read,
        )
        self._pass(seconds)
        self.n_steps += 1
        self._speeds.saw(n_read, seconds)
        for request in writers:
            self._wrote(request, 1)
        for request, n in readers:
            request.n_read += n
            if not request.n_unread:
                request.first_token_at = self.now
                self._on_first_token(request)
                self._wrote(request, 1)

    def _wrote(self, request: VirtualRequest, n: int) -> None:
        request.n_written += n
        request.written_by[self.variant] = request.written_by.get(self.variant, 0) + n
        if request.n_written >= request.arrival.n_generated:
            request.ended_at = self.now
            del self.running[request.id]
            self._on_end(request)


def _steps_to(seconds: float, first: float, growth: float) -> int:
    """How many steps, each longer than the one before by ``growth``, until a time is reached or passed; at least 1."""
    if growth * seconds < 1e-9 * first * first:
        return max(1, math.ceil(seconds / first))
    half = first - growth / 2
    return max(1, math.ceil((math.sqrt(half * half + 2 * growth * seconds) - half) / growth))
