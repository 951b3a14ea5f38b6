"""Keeps a served model placed: looks at the machines, asks ``replanning`` what to do, and moves the layers.

    mover = Mover(site, engine, settings, models, layers, fill, MoverOptions())
    await mover.run()                     # beside the server, for ever

The front never restarts: an engine that was ended for a move is followed by one with another placement, and what is
open goes on from its prompt and the tokens sent (``serving.supervisor``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from lamella.batching.messages import CacheSaved
from lamella.batching.settings import EngineSettings, LayersAt
from lamella.cluster.carrying import Move, is_worth_carrying
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.layers import COORDINATOR, LayersOf, nodes_of
from lamella.cluster.placing import (
    MachineNow,
    Placed,
    ServedModel,
    place_served,
    seconds_of,
    what_is_missing,
)
from lamella.cluster.replanning import Record, ReplanLimits, View, decide
from lamella.core.artifacts import ShardRef
from lamella.core.errors import LamellaError, RemoteFailed
from lamella.core.units import format_bytes

TICK_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 8.0
"""Between two looks where one after the other fails."""
_MOST_DOUBLINGS = 16  # far beyond the longest pause; 2.0 ** 1024 is more than a float holds
READY_SECONDS = 30.0
"""For a node to begin another session."""
SAVE_SECONDS = 30.0
"""For the KV cache to be saved; what takes longer is computed again."""

State = Literal["placed", "moving", "nothing fits"]
Fill = Callable[[str, Sequence[ShardRef]], Awaitable[None]]
"""Has a node fetch what it lacks of some shards."""


class Machines(Protocol):
    """What is known of the machines: ``site.Site``."""

    @property
    def nodes(self) -> Mapping[str, Forwarder]: ...

    def machines(self) -> dict[str, MachineNow]: ...


class MovableEngine(Protocol):
    """What is moved: ``serving.supervisor.SupervisedEngine``."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def n_cells_used(self) -> int: ...

    async def save_cache(self, limit_seconds: float) -> CacheSaved: ...

    def hold(self, why: str, *, refuses: bool) -> None: ...

    def use(self, settings: EngineSettings, variant: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class MoverOptions:
    """How layers move.

    Attributes:
        home: where they are to be whenever that is possible; None for wherever they are fastest.
        shards: what a node needs for some layers.
    """

    shards: Callable[[Sequence[LayersOf]], Sequence[ShardRef]]
    fill: Fill
    home: tuple[LayersOf, ...] | None = None
    limits: ReplanLimits = field(default_factory=ReplanLimits)
    on_line: Callable[[str], None] = lambda _: None


class Mover:
    """Where the layers are.

    Attributes:
        layers: of the placement that runs, or ran last.
        state, why: what is going on.
        n_moves: so far.
    """

    def __init__(
        self,
        site: Machines,
        engine: MovableEngine,
        settings: EngineSettings,
        models: Sequence[ServedModel],
        layers: Sequence[LayersOf],
        options: MoverOptions,
        *,
        running: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The engine runs already, or is being started.

        Args:
            models: the variants that may be served, largest first.
            layers: where they are.
            running: name of the variant that the engine runs at; None while no engine answers.
        """
        self.layers: tuple[LayersOf, ...] = tuple(layers)
        self.state: State = "placed"
        self.why, self.n_moves = "", 0
        self._site, self._engine, self._settings = site, engine, settings
        self._models, self._options, self._running, self._clock = models, options, running, clock
        self._record, self._has_stopped, self._is_held = Record(), False, False
        self._variant = self._wanted = running() or settings.variant or models[0].name
        self._at_first = site.machines()  # how fast home was meant to be
        self._planned_for: tuple[str, Mapping[str, MachineNow]] = ("", {})
        self._plan: Placed | None = None

    async def run(self) -> None:
        """Look and act, again and again.  A fault costs one look, and is told once for as long as it is the same."""
        told, n_failures = "", 0
        while True:
            fault = await self._look_in_words()
            if fault and fault != told:
                self._options.on_line(fault)
            told, n_failures = fault, n_failures + 1 if fault else 0
            await asyncio.sleep(pause_seconds(n_failures))

    async def _look_in_words(self) -> str:
        """Look; returns what went wrong, or "" where nothing did."""
        try:
            await self.look()
        except LamellaError as error:
            return f"layers cannot move now: {error}"
        except Exception as error:
            return f"a fault in Lamella: {type(error).__name__}: {error}"
        return ""

    async def look(self) -> None:
        """Look once, and act."""
        self._note_switches()
        machines = self._site.machines()
        other, is_asked_for = await self._other(machines)
        current = None if self._has_stopped else self._seconds(self.layers, machines)
        is_there = other is not None and (other.variant, other.layers) == (self._variant, self.layers)
        seconds = None if other is None or (is_there and current is not None) else other.seconds
        view = View(self._clock(), current, seconds, is_asked_for, self._has_stopped)
        decision = decide(self._record, view, self._options.limits)
        self._record, self.why = decision.record, decision.why
        if decision.act == "stop":
            self._stop(machines)
        elif decision.act == "move":
            assert other is not None  # or there would be nowhere to go
            await self._move(other, decision.why)
        elif decision.act == "wait":
            self.state = "moving"
            self._hold(decision.why)  # it would be started for nothing
        else:
            self.state = "placed"
            self._let_go()

    def _note_switches(self) -> None:
        """Somebody who has switched wants that variant.  One that the store got since is placed like the one before."""
        running = self._running()
        if running is not None and running != self._variant and running in {model.name for model in self._models}:
            self._variant = self._wanted = running

    # --- where to --------------------------------------------------------------------------------------------------

    def _seconds(self, layers: Sequence[LayersOf], machines: Mapping[str, MachineNow]) -> float | None:
        return seconds_of(self._model(self._variant), machines, layers)

    def _model(self, name: str) -> ServedModel:
        return next(model for model in self._models if model.name == name)

    async def _other(self, machines: Mapping[str, MachineNow]) -> tuple[Placed | None, bool]:
        """Where the layers would go, and whether that is where somebody wants them."""
        home, limits = self._options.home, self._options.limits
        if home:
            model = self._model(self._wanted)
            seconds, meant = seconds_of(model, machines, home), seconds_of(model, self._at_first, home)
            if seconds is not None and (meant is None or seconds <= (1 + limits.gain) * meant):
                is_elsewhere = home != self.layers or self._variant != self._wanted
                return Placed(self._wanted, home, seconds), is_elsewhere
        if (self._wanted, machines) != self._planned_for:
            first = next(i for i, model in enumerate(self._models) if model.name == self._wanted)
            self._plan = await asyncio.to_thread(place_served, self._models[first:], machines)
            self._planned_for = (self._wanted, machines)
        return self._plan, self._plan is not None and self._variant != self._wanted == self._plan.variant

    # --- and there -------------------------------------------------------------------------------------------------

    def _stop(self, machines: Mapping[str, MachineNow]) -> None:
        self.why = what_is_missing(self._models, machines)
        if self.state != "nothing fits":
            self._options.on_line(self.why)
            self._engine.hold(self.why, refuses=True)
        self.state, self._has_stopped, self._is_held = "nothing fits", True, True

    def _hold(self, why: str) -> None:
        if not self._is_held:
            self._engine.hold(why, refuses=False)
        self._is_held = True

    def _let_go(self) -> None:
        if self._is_held:
            self._engine.use(self._settings)
        self._is_held = False

    async def _move(self, to: Placed, why: str) -> None:
        places = ", ".join(f"{at.node}={at.first}-{at.end - 1}" for at in to.layers)
        self.state, self.why = "moving", f"layers move to {places}: {why}"
        self._options.on_line(self.why)
        shards = {n: self._options.shards([at for at in to.layers if at.node == n]) for n in nodes_of(to.layers)}
        for name, wanted in shards.items():
            await self._while_up(name, asyncio.ensure_future(self._options.fill(name, wanted)))
        await self._save_cache(to)
        self._hold(self.why)
        self._has_stopped = True  # until another engine may start
        for name, wanted in shards.items():
            self._site.nodes[name].renew(wanted)
        for name in shards:
            await self._site.nodes[name].ready(READY_SECONDS)
        self._settings = msgspec.structs.replace(self._settings, layers=layers_at(to.layers, self._site.nodes))
        self._engine.use(self._settings, to.variant if to.variant != self._variant else None)
        self.layers, self._variant, self._has_stopped, self._is_held = to.layers, to.variant, False, False
        self.state, self.why, self.n_moves = "placed", "", self.n_moves + 1

    async def _save_cache(self, to: Placed) -> None:
        """Have the KV cache go along, where it can and that is worth it."""
        machines, n_cells = self._site.machines(), self._engine.n_cells_used
        is_whole = self._engine.is_ready and all(at.node in machines for at in self.layers)
        if not is_whole or not is_worth_carrying(
            Move(self._model(to.variant), machines, self.layers, to.layers), n_cells
        ):
            return
        try:
            saved = await self._engine.save_cache(SAVE_SECONDS)
        except (LamellaError, OSError) as error:
            self._options.on_line(f"the KV cache stays behind, and is computed again: {error}")
        else:
            n_bytes, seconds = format_bytes(saved.n_bytes), saved.seconds
            self._options.on_line(f"the KV cache goes along: {saved.n_cells} tokens, {n_bytes}, in {seconds:.2f} s")

    async def _while_up(self, node: str, work: asyncio.Future[None]) -> None:
        """Do something that needs a node, and give up when it goes."""
        try:
            while not work.done():
                await asyncio.wait((work,), timeout=TICK_SECONDS)
                if not work.done() and not self._site.nodes[node].is_up:
                    raise RemoteFailed(f"node '{node}' has gone away while it was given its layers")
            await work
        finally:
            work.cancel()


def pause_seconds(n_failures: int) -> float:
    """Until the next look, after so many in a row that failed."""
    return min(LONGEST_PAUSE_SECONDS, TICK_SECONDS * 2.0 ** min(n_failures, _MOST_DOUBLINGS))


def layers_at(layers: Sequence[LayersOf], nodes: Mapping[str, Forwarder]) -> list[LayersAt]:
    """As an engine is told."""
    return [LayersAt("" if at.node == COORDINATOR else nodes[at.node].endpoint, at.first, at.end) for at in layers]
