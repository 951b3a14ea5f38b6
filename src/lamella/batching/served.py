"""The variants of a serving engine: which one runs, which ones requests hold, and changes that wait to happen.

Everything is called between two steps, by the loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent import futures
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from lamella.batching.messages import EngineMessage, Prepare, Prepared, Refused, Switch, Switched
from lamella.batching.refusals import refusal
from lamella.core.errors import LamellaError, UnknownVariant
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant, SwitchReport
from lamella.run.stepwise import StepwiseChange
from lamella.run.variants import LiveVariants

STALL_SECONDS = 0.01
"""Between two steps, how long is waited for shards of a change shard by shard.

One takes a few milliseconds to read in, and a step of the model a hundred: without waiting, a change of a model of
many layers would take as many steps."""
SAVING_STALL_SECONDS = 1.0
"""The same for a change that saves memory.

A step then reads weights that the kernel has taken back, and takes others for them: it may last longer than the whole
change, and what takes the memory goes on meanwhile."""
KEEP_RATE = 0.8
"""Weight of the past in the running mean of a flip's time."""


@dataclass(slots=True)
class Waiting:
    """A change that waits for a variant's pages."""

    message: Switch | Prepare
    future: Future[Ready]


@dataclass(slots=True)
class Changing:
    """A change shard by shard that is under way, and the shard that is being opened for it."""

    message: Switch
    change: StepwiseChange
    opening: Future[None]


@dataclass(frozen=True, slots=True)
class Opening:
    """A variant that is being opened for requests.

    Attributes:
        n_room_changes: how often room had been made before it began: what it found may be over.
    """

    future: Future[Ready]
    n_room_changes: int


class ServedVariants:
    """Answers ``Switch`` and ``Prepare``, and points the weights where a step wants them.

    Attributes:
        n_switches, switch_seconds: of the default variant, and how long no step could run because of them.
        flip_seconds: spent on alternating between the variants of concurrent requests.
        mean_flip_seconds: of one flip, lately.
    """

    def __init__(
        self,
        live: LiveVariants,
        send: Callable[[EngineMessage], None],
        *,
        allowed: Iterable[str],
        on_switched: Callable[[Switch], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Serve ``allowed`` variants.

        Args:
            on_switched: called after each switch that was asked for.
            wake: called from another thread when something that waits can go on.
        """
        self._live, self._send, self._clock, self._on_switched = live, send, clock, on_switched
        self._wake = wake
        self._allowed = frozenset(allowed)
        self._waiting: list[Waiting] = []
        self._changing: Changing | None = None
        self._opener = ThreadPoolExecutor(1, "lamella-exchange")
        self._opening: dict[str, Opening] = {}
        self._without_room: set[str] = set()
        self._n_room_changes = 0
        self._held: dict[str, PreparedVariant] = {}
        self._users: dict[str, int] = {}
        self.pointed_at = self.default
        self.n_switches = 0
        self.switch_seconds = self.flip_seconds = self.mean_flip_seconds = 0.0

    @property
    def default(self) -> str:
        """What computes requests that ask for no variant: one, or in the middle of a change a mixture of two."""
        assert self._live.current is not None  # the loop switches to the first variant when it opens
        return self._live.current.variant.name

    @property
    def name(self) -> str:
        """The variant that runs; in the middle of a change the one before."""
        return self._live.name

    def name_of(self, default_or_held: str) -> str:
        """What the front is told of who computed a step: the name of a variant."""
        return self.name if default_or_held == self.default else default_or_held

    def check(self, variant: str) -> None:
        """Refuse a variant that is not served.

        Raises:
            UnknownVariant: says which ones are.
        """
        if variant not in self._allowed:
            raise UnknownVariant(f"no variant '{variant}' is served; there are: {', '.join(sorted(self._allowed))}")

    # --- requests that hold a variant -----------------------------------------------------------------------------

    @property
    def users(self) -> Mapping[str, int]:
        """Variants that are open for requests, and how many run at each."""
        return self._users

    @property
    def without_room(self) -> Collection[str]:
        """Variants for which the memory ceiling has no room beside those."""
        return self._without_room

    def open_for(self, variant: str) -> bool:
        """Get a variant ready for a request; whether anything has come of it: it is open, or there is no room for it.

        Where the memory ceiling has no room for it beside those of other requests, it may be tried again when one of
        these was let go.

        Raises:
            ExceedsCeiling: there is no room for it beside the variant that runs.
            LamellaError: it cannot be opened.
        """
        if variant in self._held or variant in self._without_room:
            return True
        opening = self._opening.get(variant)
        if opening is None:
            opening = self._opening[variant] = Opening(self._prepare(variant), self._n_room_changes)
        if not opening.future.done():
            return False
        del self._opening[variant]
        prepared = opening.future.result()
        if isinstance(prepared, StagedVariant):
            is_lasting = (
                self._live.check_beside(prepared)
                and opening.n_room_changes == self._n_room_changes
                and any(held != self.default for held in self._held)  # else nobody would say that there is room now
            )
            if is_lasting:
                self._without_room.add(variant)
            return is_lasting
        if not self._live.hold(prepared):  # another change pushed it out meanwhile
            return False
        self._held[variant] = prepared
        self._users.setdefault(variant, 0)
        return True

    def hold(self, variant: str) -> None:
        """One more request runs at this variant (after ``open_for``)."""
        self._users[variant] += 1

    def release(self, variant: str) -> None:
        """One less; the variant stays until it is let go, since the next may begin in the same turn."""
        self._users[variant] -= 1

    def let_go(self, variant: str) -> None:
        """Keep a variant open no longer; no request runs at it."""
        assert self._users[variant] == 0
        del self._users[variant], self._held[variant]
        self._live.release(variant)
        if variant != self.default:
            self._room_has_changed()

    def _room_has_changed(self) -> None:
        """What found none may find some."""
        self._without_room.clear()
        self._n_room_changes += 1

    def point_at(self, variant: str, *, reads_prompt: bool) -> None:
        """Let the next step be computed by a variant: the default, or one that is held."""
        current = self._live.current
        assert current is not None
        prepared = current if variant == current.variant.name else self._held[variant]
        start = self._clock()
        moved = self._live.use(prepared.prompt if reads_prompt else prepared.token)
        if variant != self.pointed_at:
            seconds = self._clock() - start
            self.flip_seconds += seconds
            self.mean_flip_seconds += (1 - KEEP_RATE) * (seconds - self.mean_flip_seconds) if moved else 0.0
            self.pointed_at = variant

    # --- changes that were asked for ---------------------------------------------------------------------------------

    def ask(self, message: Switch | Prepare) -> None:
        """Begin a change; it is answered when it has happened or cannot."""
        try:
            self.check(message.variant)
            if isinstance(message, Switch):
                self._live.memory.save(is_on=message.saves_memory)
            self._waiting.append(Waiting(message, self._prepare(message.variant)))
        except LamellaError as error:
            self._refuse(message, error)

    def advance(self) -> None:
        """Make the changes whose pages are there, in the order they were asked for."""
        self._advance_changing()
        while self._changing is None and self._waiting and self._waiting[0].future.done():
            waiting = self._waiting.pop(0)
            try:
                self._finish(waiting.message, waiting.future.result())
            except CancelledError:
                self._send(Refused(id=waiting.message.id, why="failed", message="the engine is shutting down"))
            except LamellaError as error:
                self._refuse(waiting.message, error)

    def _finish(self, message: Switch | Prepare, ready: Ready) -> None:
        if isinstance(message, Prepare):
            is_whole = isinstance(ready, PreparedVariant)
            self._send(Prepared(id=message.id, variant=message.variant, seconds=ready.seconds, is_whole=is_whole))
        elif isinstance(ready, StagedVariant):
            self._begin(message, ready)
        else:
            self._switch(message, ready)

    def _switch(self, message: Switch, prepared: PreparedVariant) -> None:
        start = self._clock()
        report = self._live.switch_to(prepared)
        if report is None:  # a change before this one pushed it out
            self._ask_again(message)
            return
        if message.variant in self._held:  # it may have been replaced in the store: its requests go on with what is new
            self._held[message.variant] = prepared
        self._has_switched(message, report, self._clock() - start)

    def _has_switched(self, message: Switch, report: SwitchReport, stall_seconds: float) -> None:
        self.pointed_at = message.variant
        self._room_has_changed()
        self.n_switches += 1
        self.switch_seconds += stall_seconds
        if message.saves_memory:
            self._live.memory.save(is_on=True)  # the variant before is only warm now
        self._on_switched(message)
        self._send(_switched(message, report, stall_seconds))

    def _ask_again(self, message: Switch) -> None:
        self._waiting.insert(0, Waiting(message, self._prepare(message.variant)))

    # --- shard by shard, where memory does not hold both variants ---------------------------------------------------

    def _begin(self, message: Switch, staged: StagedVariant) -> None:
        change = self._live.begin(staged)
        if change is None:
            self._ask_again(message)
        else:
            self.pointed_at = self.default
            self._changing = Changing(message, change, self._open_next(change))

    def _open_next(self, change: StepwiseChange) -> Future[None]:
        """Read the next shard in, in the background."""
        future = self._opener.submit(change.open_next)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _advance_changing(self) -> None:
        """Exchange the shards that are there, or come within the time that may be lost; steps run in between."""
        began = self._clock()
        while (changing := self._changing) is not None:
            end = began + (SAVING_STALL_SECONDS if changing.message.saves_memory else STALL_SECONDS)
            futures.wait([changing.opening], max(0.0, end - self._clock()))
            if not changing.opening.done():
                return
            try:
                changing.opening.result()
                changing.change.exchange_next()
            except LamellaError as error:
                self._end_change(changing)
                self._refuse(changing.message, error)
                return
            if changing.change.is_over:
                report = self._end_change(changing)
                assert report is not None  # it is over
                self._has_switched(changing.message, report, report.switch_seconds)
            else:
                changing.opening = self._open_next(changing.change)

    def _end_change(self, changing: Changing) -> SwitchReport | None:
        self._changing = None
        self._room_has_changed()
        return self._live.end(changing.change)

    def close(self) -> None:
        """Open nothing more."""
        self._opener.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, variant: str) -> Future[Ready]:
        future = self._live.prepare(variant)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _refuse(self, message: Switch | Prepare, error: LamellaError) -> None:
        self._send(refusal(message.id, error))


def _switched(message: Switch, report: SwitchReport, stall_seconds: float) -> Switched:
    return Switched(
        id=message.id,
        before=report.before,
        after=report.after,
        n_weights=report.n_weights,
        n_shards=report.n_shards,
        stall_seconds=stall_seconds,
        prepare_seconds=report.prepare_seconds,
        n_steps=report.n_steps,
        longest_stall_seconds=report.longest_seconds if report.n_steps > 1 else stall_seconds,
        peak_bytes=report.peak_bytes,
    )
