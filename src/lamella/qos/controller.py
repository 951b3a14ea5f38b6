"""The loop that is closed: samples to a policy, its decisions to the engine, every change logged with its reason.

    controller = Controller(Predictive(setting), running=running_variant, sample=take_sample, switch=client.switch)
    await controller.run(stop)

Knows no server: what is sampled, what runs, how a variant is changed and what time it is are given to it.  Hands come
before policies for as long as they hold, and memory comes before hands: a process that the kernel kills serves nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from lamella.batching.messages import Switched
from lamella.core.errors import InvalidRequest, LamellaError, UnknownVariant
from lamella.qos.policies.decision import Decision, Policy, PolicyState
from lamella.qos.policies.sample import Sample

SAMPLE_SECONDS = 0.25
MOST_LOGGED = 1000
RETRY_SECONDS = 10.0
"""After a change that failed, nothing is tried for so long..."""
PRESSED_RETRY_SECONDS = 1.0
"""...or only for so long where memory is short."""
HOLD_SECONDS = 300.0
"""A switch by hand holds the policy for so long."""

_log = logging.getLogger(__name__)


def check_hold(seconds: float | None) -> None:
    """Refuse a time that no switch by hand can hold; None is the usual one.

    Raises:
        InvalidRequest: it is below 0, or no number.
    """
    if seconds is not None and not seconds >= 0:
        raise InvalidRequest(f"a switch by hand holds for 0 seconds or more, not {seconds:g}")


By = Literal["policy", "hand", "memory"]
"""Who changed the variant: a policy by what it promised, a policy because memory was short, or somebody."""


class Switch(Protocol):
    """Changes the variant; raises ``LamellaError`` where it cannot, and nothing has changed then."""

    def __call__(
        self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False
    ) -> Awaitable[Switched]: ...


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A change of variant.

    Attributes:
        at: unix time.
        before, after: the variants.
        reason: in words.
        by: whose decision it was.
        failure: why it did not happen; "" if it did.
    """

    at: float
    before: str
    after: str
    reason: str
    by: By = "policy"
    failure: str = ""


class Controller:
    """Samples, decides and changes; one ``tick`` at a time.

    Attributes:
        policy: that decides; None where nobody but hands does.
        is_on: whether the policy may change anything.
        hold_seconds: how long a switch by hand holds the policy; infinite: until ``release``.
        last_reason: of the last decision, be it a change or not.
        n_changes: changes that happened, by whose decision it was.
    """

    def __init__(
        self,
        policy: Policy | None,
        running: Callable[[], str],
        sample: Callable[[], Awaitable[Sample]],
        switch: Switch,
        *,
        hold_seconds: float = HOLD_SECONDS,
        on_change: Callable[[LoggedChange], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Control an engine.

        Args:
            running: the variant that the engine runs at now, whoever changed it.
            sample: what is seen now; its time is of ``clock``.
            on_change: told every change, those that failed too.
        """
        self.policy, self.is_on, self.hold_seconds = policy, True, hold_seconds
        self._running, self._take_sample, self._switch = running, sample, switch
        self._on_change, self._clock, self._unix_time, self._sleep = on_change, clock, unix_time, sleep
        self._state: PolicyState | None = None
        self._log: deque[LoggedChange] = deque(maxlen=MOST_LOGGED)
        self._failed_at: float | None = None
        self._held_until: float | None = None
        self._one_at_a_time = asyncio.Lock()
        self.last_reason = "nothing was decided yet"
        self.n_changes: Counter[By] = Counter()

    @property
    def is_held(self) -> bool:
        """Whether somebody's choice stays, whatever the policy says."""
        return self._held_until is not None and self._clock() < self._held_until

    @property
    def held_until(self) -> float | None:
        """Unix time until which somebody's choice stays; None where none does, or until ``release``."""
        if not self.is_held or self._held_until is None or math.isinf(self._held_until):
            return None
        return self._unix_time() + self._held_until - self._clock()

    @property
    def log(self) -> Sequence[LoggedChange]:
        """The last changes, oldest first."""
        return tuple(self._log)

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop; a fault is logged, and does not end what keeps the others' promises."""
        while not stop.is_set():
            try:
                await self.tick()
            except Exception:
                _log.exception("a decision failed")
            await self._sleep(SAMPLE_SECONDS)

    async def tick(self) -> None:
        """Sample, decide, and change if that was decided; a change that fails is logged and tried again later."""
        async with self._one_at_a_time:
            if self.policy is None or not self.is_on:
                return
            sample = await self._take_sample()
            if self.policy is None or not self.is_on:  # somebody said so meanwhile
                return
            try:
                decision = self.policy.decide(self._believed(sample.time), sample)
            except UnknownVariant as error:  # somebody chose one that was built after the profile
                self.last_reason = str(error)
                return
            self.last_reason = decision.reason
            by: By = "memory" if decision.state.pressed_at == sample.time else "policy"
            if by == "policy" and self.is_held:
                return
            await self._follow(decision, by)

    async def change_by_hand(self, variant: str, *, recompute_cache: bool = False) -> Switched:
        """Run at a variant; the policy decides nothing for ``hold_seconds``, or until memory is short.

        Raises:
            LamellaError: as the switch; it is logged, and nothing is held.
        """
        async with self._one_at_a_time:
            switched = await self._change(variant, "somebody asked for it", "hand", recompute_cache=recompute_cache)
            self._held_until = self._clock() + self.hold_seconds
            return switched

    def hold_for(self, seconds: float) -> None:
        """Hold the policy for so long after switches by hand; one that stands stays at most so long from now on."""
        self.hold_seconds = seconds
        if self._held_until is not None:
            self._held_until = min(self._held_until, self._clock() + seconds)

    def release(self) -> None:
        """Let the policy decide again."""
        self._held_until = None

    def _believed(self, now: float) -> PolicyState:
        """What the policy remembers, if the engine still runs at the variant that was decided."""
        running = self._running()
        if self._state is None or self._state.variant != running:
            pressed_at = self._state.pressed_at if self._state else None
            self._state = PolicyState(running, since=now, pressed_at=pressed_at)
        return self._state

    async def _follow(self, decision: Decision, by: By) -> None:
        assert self._state is not None  # a decision was made of it
        if decision.variant == self._state.variant:
            self._state = decision.state
        elif not self._is_too_early(by):
            try:
                await self._change(decision.variant, decision.reason, by)
            except LamellaError:  # it is in the log
                self._state = replace(self._state, pressed_at=decision.state.pressed_at)
                return
            self.release()  # what somebody chose runs no more
            self._state = decision.state

    def _is_too_early(self, by: By) -> bool:
        pause = PRESSED_RETRY_SECONDS if by == "memory" else RETRY_SECONDS
        return self._failed_at is not None and self._clock() < self._failed_at + pause

    async def _change(self, variant: str, reason: str, by: By, *, recompute_cache: bool = False) -> Switched:
        before = self._running()
        try:
            switched = await self._switch(variant, recompute_cache=recompute_cache, saves_memory=by == "memory")
        except LamellaError as error:
            self._failed_at = self._clock()
            self._note(LoggedChange(self._unix_time(), before, variant, reason, by, str(error)))
            raise
        self._failed_at = None
        self.n_changes[by] += 1
        self._note(LoggedChange(self._unix_time(), before, variant, reason, by))
        return switched

    def _note(self, change: LoggedChange) -> None:
        self._log.append(change)
        self._on_change(change)
