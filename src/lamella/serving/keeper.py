"""One engine process after another: the one that runs is watched, and one that ends is replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from lamella.batching.messages import EngineMessage, FrontMessage, Hello, Status
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable, LamellaError
from lamella.serving.aside import Aside
from lamella.serving.child import EngineChild
from lamella.serving.left_cache import LeftCache
from lamella.serving.restarts import GiveUp, RestartHistory, decide
from lamella.serving.supervision import EngineDied, SupervisorOptions
from lamella.serving.watch import Watch


class EngineOwner(Protocol):
    """Who wants an engine.  All is called in the event loop."""

    @property
    def variant(self) -> str | None:
        """What the next engine is to load; None for its own choice."""

    def receive(self, message: EngineMessage) -> None:
        """An engine says something."""

    def came_up(self, hello: Hello) -> None:
        """An engine is ready; it can be sent to from now on."""

    def went_silent(self) -> None:
        """That engine has closed its connection, and is about to end; nothing more can be sent to it."""

    def died(self, died: EngineDied, *, is_excused: bool) -> bool:
        """That engine has ended; returns whether it did any work before.  Excused: nothing it had is to blame."""

    def did_not_start(self, died: EngineDied) -> None:
        """Another try to replace it failed."""

    def gave_up(self, why: Callable[[], LamellaError]) -> None:
        """No engine will follow; ``why`` makes an error that says so."""

    def look_after(self, now: float) -> None:
        """Called about every ``Patience.tick_seconds``, also while no engine is up."""


class EngineKeeper:
    """Keeps an engine process running.

    Attributes:
        is_up: it can be sent to.
        n_restarts: processes started after the first.
        left: what one engine leaves to the next.
    """

    def __init__(
        self,
        owner: EngineOwner,
        settings: EngineSettings,
        options: SupervisorOptions,
        *,
        on_line: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started yet.

        Args:
            settings: of each engine; its variant is the owner's word.
            on_line: gets what engines write on standard output and error.
        """
        self.is_up, self.n_restarts, self.left = False, 0, LeftCache()
        self._owner, self._settings, self._options = owner, settings, options
        self._on_line, self._clock = on_line, clock
        self._child: EngineChild | None = None
        self._watch = Watch(options.patience, clock())
        self._aside = Aside()
        self._up_since = 0.0
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._was_told_to_end = False
        self._why_to_end = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the first engine; returns when it is ready.  One that ends excused is followed by another.

        Raises:
            EngineUnavailable: it cannot be started, in its own words where it found some.
        """
        self._tasks.append(asyncio.create_task(self._look_after()))
        try:
            child = await self._bring_up()
            while isinstance(child, EngineDied) and self._is_excused():
                child = await self._bring_up_again(self._options.restarts.first_pause_seconds)
        except BaseException:
            await self.close()
            raise
        if isinstance(child, EngineDied):
            await self.close()
            raise EngineUnavailable(f"the engine cannot start: {child}")
        self._tasks.append(asyncio.create_task(self._keep(child)))

    def send(self, message: FrontMessage) -> None:
        """Send a message to the engine, if there is one; what it does not get, the next one must be given.

        Raises:
            FrameTooLong: nothing of it was sent.
        """
        if self._child is not None:
            self._child.send(message)

    def hold(self, why: str) -> None:
        """End the engine, and start no other until ``use``."""
        self._may_run.clear()
        self._end_child(why)

    def use(self, settings: EngineSettings) -> None:
        """Run an engine of other settings from now on; one that runs, or is being started, is ended."""
        self._settings = settings
        self._end_child("another with other settings takes its place")
        self._may_run.set()

    def _end_child(self, why: str) -> None:
        self._why_to_end = why  # also for one that is being started, and is nobody's child yet
        if self._child is not None:
            self.is_up, self._was_told_to_end = False, True
            self._child.kill(why)

    async def close(self) -> None:
        """End the engine, and start no other.  May be called more than once."""
        self.is_up = False
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        child, self._child = self._child, None
        self._aside.lift()
        if child is not None:
            await child.stop(self._options.stop_seconds)
        self.left.drop()

    async def _bring_up(self) -> EngineChild | EngineDied:
        """Start an engine and wait until it is ready, or until nothing is left of it."""
        left = self.left.take()
        try:
            return await self._bring_up_with(left)
        finally:
            if left:
                self.left.drop()

    async def _bring_up_with(self, cache_folder: str) -> EngineChild | EngineDied:
        settings = msgspec.structs.replace(self._settings, variant=self._owner.variant, cache_folder=cache_folder)
        self._why_to_end = ""  # what came before is in these settings
        self._watch = Watch(self._options.patience, self._clock())
        self._aside.lift()
        try:
            child = await EngineChild.start(self._options.command, settings, self._receive, self._on_line)
        except OSError as error:
            return EngineDied(f"no process can be started: {error}")
        self._child = child
        if self._why_to_end:
            self._end_child(self._why_to_end)
        hello = await child.hello()
        if hello is None:
            return await self._end_of(child)
        self.is_up, self._up_since = True, self._clock()
        self._watch.up(self._up_since)
        self._owner.came_up(hello)
        return child

    async def _bring_up_again(self, pause_seconds: float) -> EngineChild | EngineDied:
        """Start one more, after a pause and when it may run."""
        await asyncio.sleep(pause_seconds)
        await self._may_run.wait()
        self._was_told_to_end = False
        self.n_restarts += 1
        return await self._bring_up()

    async def _end_of(self, child: EngineChild) -> EngineDied:
        why = await child.ended()
        self._child = None
        return EngineDied(why, tuple(child.last_lines))

    def _receive(self, message: EngineMessage) -> None:
        self._watch.heard(self._clock())
        if isinstance(message, Status):
            self._watch.in_step(message.step_seconds_now)
        self._owner.receive(message)

    async def _keep(self, child: EngineChild) -> None:
        """Replace engines that die, until that is done too often."""
        history = RestartHistory()
        while True:
            await child.has_closed()
            self.is_up = False
            is_excused = self._is_excused()
            self._owner.went_silent()
            died = await self._end_of(child)
            is_settled = self._clock() - self._up_since >= self._options.restarts.settled_seconds
            was_fruitful = self._owner.died(died, is_excused=is_excused) or is_settled
            replaced = await self._replace(history, died, was_fruitful=was_fruitful, is_excused=is_excused)
            if isinstance(replaced, str):
                self._owner.gave_up(partial(EngineUnavailable, replaced))
                return
            history, child = replaced

    async def _replace(
        self, history: RestartHistory, died: EngineDied, *, was_fruitful: bool, is_excused: bool
    ) -> tuple[RestartHistory, EngineChild] | str:
        """Start another engine, as often as it takes; returns a sentence where that may not be done any more.

        Excused ends do not count against the limits: the machine that is away may stay away for long.
        """
        limits = self._options.restarts
        while True:
            pause_seconds = limits.first_pause_seconds
            if not is_excused:
                decision = decide(history, limits, now=self._clock(), was_fruitful=was_fruitful)
                if isinstance(decision, GiveUp):
                    return f"no engine can be kept up: {decision.reason}; the last one: {died.why}"
                history, pause_seconds = decision.history, decision.pause_seconds
            born = await self._bring_up_again(pause_seconds)
            if isinstance(born, EngineChild):
                return history, born
            died, was_fruitful, is_excused = born, False, self._is_excused()
            if not is_excused:
                self._owner.did_not_start(died)

    def _is_excused(self) -> bool:
        return self._was_told_to_end or self._options.excuse()

    async def _look_after(self) -> None:
        """Kill an engine that hangs."""
        while True:
            await asyncio.sleep(self._options.patience.tick_seconds)
            now = self._clock()
            self._owner.look_after(now)
            complaint = self._watch.complaint(now)
            if self._child is None:
                continue
            if self.is_up:
                self._aside.keep_off(self._child.pid)
            if complaint:
                self._child.kill(complaint)
