"""The loop that is closed: samples to a policy, its decisions to the engine, every change logged with its reason.

    controller = Controller(Predictive(setting), start="large", sample=take_sample, switch=client.switch)
    await controller.run(stop)

Knows no server: what is sampled, how a variant is changed and what time it is are given to it.  ``take_sample`` is made
of ``sampling.sample_of`` and a ``LoadWatch`` that hears what requests do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from lamella.core.errors import LamellaError
from lamella.qos.policies.decision import Policy, PolicyState
from lamella.qos.policies.sample import Sample

SAMPLE_SECONDS = 0.5
MOST_LOGGED = 1000
RETRY_SECONDS = 10.0
"""After a change that failed, nothing is tried for so long."""


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A change of variant.

    Attributes:
        time: as the controller's clock has it.
        before, after: the variants.
        reason: in words.
        failure: why it did not happen; "" if it did.
        by_hand: somebody asked for it.
    """

    time: float
    before: str
    after: str
    reason: str
    failure: str = ""
    by_hand: bool = False


class Controller:
    """Samples, decides and changes; one ``tick`` at a time.

    Attributes:
        variant: that runs, as far as the controller knows.
        last_reason: of the last decision, be it a change or not.
    """

    def __init__(
        self,
        policy: Policy,
        start: str,
        sample: Callable[[], Sample],
        switch: Callable[[str], Awaitable[object]],
        *,
        on_change: Callable[[LoggedChange], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Control an engine that runs at ``start``.

        Args:
            sample: what is seen now; its time is of ``clock``.
            switch: changes the variant; raises ``LamellaError`` where it cannot, and nothing has changed then.
            on_change: told every change, those that failed too.
        """
        self._policy, self._take_sample, self._switch = policy, sample, switch
        self._on_change, self._clock, self._sleep = on_change, clock, sleep
        self._state = PolicyState(start, since=clock())
        self._log: deque[LoggedChange] = deque(maxlen=MOST_LOGGED)
        self._quiet_until = 0.0
        self._is_held = False
        self._one_at_a_time = asyncio.Lock()
        self.last_reason = "nothing was decided yet"

    @property
    def variant(self) -> str:
        return self._state.variant

    @property
    def policy(self) -> str:
        """Name of the policy; ``by hand`` while somebody's choice is held."""
        return "by hand" if self._is_held else self._policy.name

    @property
    def log(self) -> Sequence[LoggedChange]:
        """The last changes, oldest first."""
        return tuple(self._log)

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop."""
        while not stop.is_set():
            await self.tick()
            await self._sleep(SAMPLE_SECONDS)

    async def tick(self) -> None:
        """Sample, decide, and change if that was decided; a change that fails is logged and tried again later."""
        async with self._one_at_a_time:
            if self._is_held or self._clock() < self._quiet_until:
                return
            decision = self._policy.decide(self._state, self._take_sample())
            self.last_reason = decision.reason
            if decision.variant == self._state.variant or await self._change(decision.variant, decision.reason):
                self._state = decision.state

    async def change_by_hand(self, variant: str) -> LoggedChange:
        """Run at a variant until ``release``; the policy decides nothing meanwhile.  Nothing is held if it fails."""
        async with self._one_at_a_time:
            if await self._change(variant, "somebody asked for it", by_hand=True):
                self._is_held = True
                self._state = replace(self._state, variant=variant, since=self._clock(), better_since=None)
            return self._log[-1]

    def release(self) -> None:
        """Let the policy decide again."""
        self._is_held = False

    def found(self, variant: str) -> None:
        """The engine runs at another variant than was decided, for example because a new one was started."""
        if variant != self._state.variant:
            self._state = PolicyState(variant, since=self._clock())

    async def _change(self, variant: str, reason: str, *, by_hand: bool = False) -> bool:
        failure, before = "", self._state.variant
        try:
            await self._switch(variant)
        except LamellaError as error:
            failure = str(error)
            self._quiet_until = self._clock() + RETRY_SECONDS
        change = LoggedChange(self._clock(), before, variant, reason, failure, by_hand)
        self._log.append(change)
        self._on_change(change)
        return not failure
