"""Messages between what is open and the engine that runs, whichever that is: the owner that ``keeper.py`` speaks of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from lamella.batching.frames import FrameTooLong
from lamella.batching.messages import (
    Accepted,
    CacheSaved,
    Cancel,
    Detokenized,
    Embedded,
    EngineMessage,
    Finished,
    FrontMessage,
    Generate,
    Hello,
    Prepared,
    Refused,
    Scored,
    Status,
    Step,
    Switched,
    Tokenized,
)
from lamella.core.errors import LamellaError, RequestRefused
from lamella.serving.last_good import LastGood
from lamella.serving.open_requests import OpenRequests
from lamella.serving.questions import Answer, Asked, Question, Questions
from lamella.serving.streams import RequestStream
from lamella.serving.supervision import EngineDied, EngineEvent, TrafficWatcher

T = TypeVar("T")


class Traffic:
    """What is open, and what the engine says of it.  An ``EngineOwner``.

    Attributes:
        facts: of the running model, ``variant`` as of now; None while none has been up.
        status: the last heartbeat; None while there was none.
        last_failure: how the last engine ended that nobody had asked to, for operators; "" while none has.
        closed_for: makes the error that new requests get; None while they are taken.
        listeners: called with every ``EngineEvent``.
        watchers: told of every request and every message.
    """

    def __init__(
        self,
        variant: str | None,
        poison_limit: int,
        send: Callable[[FrontMessage], None],
        clock: Callable[[], float],
        closed_for: Callable[[], LamellaError],
    ) -> None:
        """No engine is up.

        Args:
            variant: what the first engine loads.
            poison_limit: see ``OpenRequests``.
            send: to the engine that runs; raises ``FrameTooLong``.
        """
        self.facts: Hello | None = None
        self.status: Status | None = None
        self.last_failure = ""
        self.closed_for: Callable[[], LamellaError] | None = closed_for
        self.listeners: list[Callable[[EngineEvent], object]] = []
        self.watchers: list[TrafficWatcher] = []
        self._requests, self._questions = OpenRequests(poison_limit, self._gone), Questions()
        self._last_good = LastGood(variant)
        self._send, self._clock = send, clock
        self._is_up = False
        self._handlers: dict[type, Callable[[Any], object]] = {
            Step: self._on_step,
            Status: self._on_status,
            Accepted: self._requests.accepted,
            Scored: self._requests.scored,
            Finished: lambda message: self._requests.finished(message, clock()),
            Refused: self._on_refused,
            Embedded: self._on_answer,
            Tokenized: self._on_answer,
            Detokenized: self._on_answer,
            Prepared: self._on_answer,
            CacheSaved: self._on_answer,
            Switched: self._on_switched,
        }

    # --- from the front ----------------------------------------------------------------------------------------------

    @property
    def n_open(self) -> int:
        """Requests that were submitted and have not finished, embeddings included."""
        return len(self._requests) + self._questions.n_embed

    @property
    def mean_seconds(self) -> float:
        """How long requests took that finished lately; 0 if none has."""
        return self._requests.mean_seconds

    def submit(self, request: Generate) -> RequestStream:
        """Take a request, and send it when that may be."""
        stream = RequestStream(lambda: self._cancel(request.id))
        self._requests.add(request, stream, self._clock())
        for watcher in self.watchers:
            _soon(watcher.submitted, request)
        self._send_held()
        return stream

    def ask(self, message: Asked) -> Question:
        """Take a question, and send it when that may be; ``forget`` it in the end."""
        question = self._questions.add(message)
        self._send_held()
        return question

    def forget(self, number: int) -> None:
        """Nobody waits for an answer any more."""
        if self._questions.forget(number):
            self._send(Cancel(id=number))

    def _cancel(self, number: int) -> None:
        if self._requests.cancelled(number):
            self._send(Cancel(id=number))
        self._send_held()  # if it was tried alone, others have waited for it

    # --- to the engine -----------------------------------------------------------------------------------------------

    def _send_held(self) -> None:
        """Send what the engine has not been given; a request that is tried alone holds everything else back."""
        if not self._is_up:
            return
        for request in self._requests.to_send(self._clock()):
            self._send_or_fail(request)
        if not self._requests.is_trying:
            for question in self._questions.to_send():
                self._send_or_fail(question)

    def _send_or_fail(self, message: Generate | Asked) -> None:
        try:
            self._send(message)
        except FrameTooLong as error:
            refusal = RequestRefused(str(error), why="invalid")
            self._requests.fail(message.id, refusal)
            self._questions.fail(message.id, refusal)

    # --- from the engine ---------------------------------------------------------------------------------------------

    def receive(self, message: EngineMessage) -> None:
        """An engine says something."""
        was_trying = self._requests.is_trying
        for watcher in self.watchers:
            _soon(watcher.heard, message)
        self._handlers[type(message)](message)
        if was_trying and not self._requests.is_trying:
            self._send_held()

    def _on_step(self, step: Step) -> None:
        takes_any = self._requests.step(step, self._clock())
        if takes_any or step.variant == self._last_good.variant:
            self._last_good.computed(step.variant)

    def _on_status(self, status: Status) -> None:
        self.status = status
        self._tell(status)

    def _on_refused(self, refused: Refused) -> None:
        if not self._requests.refused(refused):
            self._questions.refused(refused)

    def _on_switched(self, switched: Switched) -> None:
        self._last_good.switched(switched.after)
        if self.facts is not None:
            self.facts = msgspec.structs.replace(self.facts, variant=switched.after)
        if self.status is not None:  # else whoever asks before the next heartbeat is told of the variant before
            self.status = msgspec.structs.replace(self.status, variant=switched.after)
        self._tell(switched)
        self._on_answer(switched)

    def _on_answer(self, answer: Answer) -> None:
        self._requests.has_fruit = True
        self._questions.answered(answer)

    def _tell(self, event: EngineEvent) -> None:
        for listener in self.listeners:
            _soon(listener, event)

    def _gone(self, number: int) -> None:
        for watcher in self.watchers:
            _soon(watcher.gone, number)

    # --- life and death ----------------------------------------------------------------------------------------------

    @property
    def variant(self) -> str | None:
        """What the next engine is to load."""
        return self._last_good.variant

    def run_next(self, variant: str) -> None:
        """The next engine is to load another variant."""
        self._last_good.loaded(variant)

    def came_up(self, hello: Hello) -> None:
        """An engine is ready."""
        self.facts, self._is_up = hello, True
        self._last_good.loaded(hello.variant)
        self._tell(hello)
        self._send_held()

    def went_silent(self) -> None:
        """That engine takes nothing any more; what comes now waits for the next."""
        self._is_up = False

    def died(self, died: EngineDied, *, is_excused: bool) -> bool:
        """That engine has ended; what is open waits for the next, but for what must have killed this one."""
        self._note(died)
        was_fruitful = self._requests.has_fruit
        was_at_work = self._requests.n_with_engine + self._questions.n_embed > 0
        self._last_good.died(at_work=was_at_work and not is_excused)
        self._questions.engine_died(died.why, is_excused=is_excused)
        was_poisoned = self._requests.engine_died(died.why, is_excused=is_excused)
        return was_fruitful or was_poisoned

    def did_not_start(self, died: EngineDied) -> None:
        """Another try to replace it failed, perhaps because of its variant."""
        self._note(died)
        self._last_good.died(at_work=True)

    def _note(self, died: EngineDied) -> None:
        self.last_failure = str(died)
        self._tell(died)

    def gave_up(self, why: Callable[[], LamellaError]) -> None:
        """No engine will follow."""
        self._is_up = False
        self.closed_for = why
        self._requests.fail_all(why)
        self._questions.fail_all(why)

    def look_after(self, now: float) -> None:
        """End requests that no engine can end."""
        self._requests.expire(now)


def _soon(tell: Callable[[T], object], what: T) -> None:
    """Not at once: a fault in who is told must not look like a fault of the engine."""
    asyncio.get_running_loop().call_soon(tell, what)
