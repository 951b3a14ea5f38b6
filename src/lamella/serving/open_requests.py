"""The requests that have not finished: what each has got so far, and what a new engine must be told to go on with it.

A request that kills the engine must not take all others down with it.  Which one it was cannot be seen in a dead
process, but the innocent show themselves by getting tokens.  So a request that was with ``poison_limit - 1`` dying
engines in a row, and got no token of any of them, is tried alone by the next one, before all others; dies that too
before it has computed a token, the request is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from statistics import fmean

import msgspec

from lamella.batching.messages import Accepted, Finished, Generate, Refused, Scored, Step, TokenEvent
from lamella.core.errors import LamellaError, RequestRefused
from lamella.serving.streams import RequestStream

N_REMEMBERED_TIMES = 64
"""Requests whose duration counts for the estimate of how long others will take."""


class OpenRequest:
    """One request, from its submission to its end.

    Attributes:
        request: as it was submitted.
        stream: to its reader.
        tokens: all that were passed on.
        is_with_engine: the living engine has it.
        has_fruit: that engine gave it a token.
        n_barren: engines in a row that had it, gave it no token and died.
    """

    def __init__(self, request: Generate, stream: RequestStream, now: float) -> None:
        self.request, self.stream = request, stream
        self.tokens: list[int] = []
        self.is_with_engine = self.has_fruit = False
        self.n_barren = 0
        self.submitted_at, self.sent_at = now, now
        self.first_token_at: float | None = None
        self.accepted: Accepted | None = None
        self.was_scored = False

    def remaining_seconds(self, now: float) -> float | None:
        """Until its deadline; 0 when that has passed, None without one."""
        deadline = self.request.deadline_seconds
        return None if deadline is None else max(0.0, self.submitted_at + deadline - now)

    def for_engine(self, now: float) -> Generate:
        """The request as an engine gets it that knows nothing of earlier ones."""
        return msgspec.structs.replace(
            self.request,
            generated=[*self.request.generated, *self.tokens],
            deadline_seconds=self.remaining_seconds(now),
        )

    def take(self, event: TokenEvent, now: float) -> None:
        """Pass a token on."""
        if not self.tokens:
            self.first_token_at = now
        self.tokens.append(event.token)
        self.has_fruit = True
        self.stream.push(event)

    def whole(self, finished: Finished, now: float) -> Finished:
        """The end as its reader should see it: with the times of all engines, and the pauses between them.

        Waiting and reading cannot be told apart for an engine that died; both count as reading.
        """
        if self.first_token_at is None or self.first_token_at >= self.sent_at:
            held_seconds = self.sent_at - self.submitted_at
            return msgspec.structs.replace(finished, queue_seconds=finished.queue_seconds + held_seconds)
        return msgspec.structs.replace(
            finished,
            cached_tokens=min(finished.cached_tokens, finished.prompt_tokens),
            queue_seconds=0.0,
            prompt_seconds=self.first_token_at - self.submitted_at,
            token_seconds=now - self.first_token_at,
        )

    def late(self, n_prompt: int, now: float) -> Finished:
        """Its end, where the deadline passes and no engine is there to say so."""
        finished = Finished(
            id=self.request.id,
            reason="deadline",
            prompt_tokens=n_prompt,
            generated_tokens=len(self.request.generated) + len(self.tokens),
        )
        return self.whole(finished, now)


class OpenRequests:
    """All of them, by number.

    Attributes:
        has_fruit: the living engine has computed something.
    """

    def __init__(self, poison_limit: int, on_removed: Callable[[int], None] = lambda _: None) -> None:
        """None is open; ``on_removed`` is told the number of each that is over."""
        self._poison_limit, self._on_removed = poison_limit, on_removed
        self._open: dict[int, OpenRequest] = {}
        self._trial: OpenRequest | None = None
        self._seconds: deque[float] = deque(maxlen=N_REMEMBERED_TIMES)
        self.has_fruit = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_trying(self) -> bool:
        """One of them is tried alone: nothing else may be sent to the engine."""
        return self._trial is not None

    @property
    def n_with_engine(self) -> int:
        return sum(request.is_with_engine for request in self._open.values())

    @property
    def mean_seconds(self) -> float:
        """How long those took that finished lately; 0 if none has."""
        return fmean(self._seconds) if self._seconds else 0.0

    def add(self, request: Generate, stream: RequestStream, now: float) -> None:
        """A new one."""
        self._open[request.id] = OpenRequest(request, stream, now)

    def to_send(self, now: float) -> Iterator[Generate]:
        """What the engine may be given now; each counts as sent when it is taken from here."""
        for request in self._sendable():
            request.is_with_engine, request.sent_at = True, now
            yield request.for_engine(now)

    def _sendable(self) -> list[OpenRequest]:
        if self._trial is not None:
            return []
        held = [request for request in self._open.values() if not request.is_with_engine]
        suspects = [request for request in held if request.n_barren >= max(1, self._poison_limit - 1)]
        if not suspects:
            return held
        self._trial = max(suspects, key=lambda request: request.n_barren)
        return [self._trial]

    # --- what the engine says; messages about requests that are not open any more are passed over ---------------------

    def accepted(self, message: Accepted) -> None:
        """Pass it on, unless an earlier engine did."""
        request = self._open.get(message.id)
        if request is not None and request.accepted is None:
            request.accepted = message
            request.stream.push(message)

    def scored(self, message: Scored) -> None:
        """Pass it on, unless an earlier engine did."""
        request = self._open.get(message.id)
        if request is not None and not request.was_scored:
            request.was_scored = True
            request.stream.push(message)

    def step(self, message: Step, now: float) -> bool:
        """Pass tokens on; returns whether one of them is of a request that takes whatever variant runs."""
        takes_any = False
        for event in message.tokens:
            request = self._open.get(event.id)
            if request is not None:
                request.take(event, now)
                takes_any = takes_any or request.request.variant is None
        self.has_fruit = True
        if self._trial is not None and self._trial.has_fruit:
            self._trial = None
        return takes_any

    def finished(self, message: Finished, now: float) -> None:
        """A request's end."""
        request = self._remove(message.id)
        if request is not None:
            self.has_fruit = True
            self._seconds.append(now - request.submitted_at)
            request.stream.push(request.whole(message, now))
            request.stream.end()

    def refused(self, message: Refused) -> bool:
        """The engine cannot do it; False if it is no request of these."""
        is_open = message.id in self._open
        self.has_fruit = self.has_fruit or is_open
        self.fail(message.id, RequestRefused(message.message, why=message.why))
        return is_open

    # --- what happens on this side -----------------------------------------------------------------------------------

    def cancelled(self, number: int) -> bool:
        """Its reader wants no more; returns whether the engine has it."""
        request = self._remove(number)
        return request is not None and request.is_with_engine

    def engine_died(self, why: str, *, is_excused: bool = False) -> bool:
        """All have to be sent again; returns whether one was refused because the engine died of it.

        Args:
            is_excused: it died of something else, so that it is counted against no request.
        """
        poison = self._trial if not self.has_fruit and not is_excused else None
        for request in self._open.values():
            if request.is_with_engine and not is_excused:
                request.n_barren = 0 if request.has_fruit else request.n_barren + 1
            request.is_with_engine = request.has_fruit = False
        self._trial, self.has_fruit = None, False
        if poison is None or poison.n_barren < self._poison_limit:
            return False
        message = (
            f"the engine died {poison.n_barren} times in a row over this request, the last time alone with it: {why}"
        )
        self.fail(poison.request.id, RequestRefused(message, why="failed"))
        return True

    def expire(self, now: float) -> None:
        """End those whose deadline passes while no engine has them."""
        late = [r for r in self._open.values() if not r.is_with_engine and r.remaining_seconds(now) == 0.0]
        for request in late:
            if request.accepted is None:
                message = "the deadline passed while the engine was being restarted"
                self.fail(request.request.id, RequestRefused(message, why="busy"))
            else:
                self._remove(request.request.id)
                request.stream.push(request.late(request.accepted.prompt_tokens, now))
                request.stream.end()

    def fail(self, number: int, error: LamellaError) -> None:
        """End one without an answer."""
        request = self._remove(number)
        if request is not None:
            request.stream.end(error)

    def fail_all(self, error: Callable[[], LamellaError]) -> None:
        """End all without an answer, each with an error of its own."""
        for number in list(self._open):
            self.fail(number, error())

    def _remove(self, number: int) -> OpenRequest | None:
        request = self._open.pop(number, None)
        if request is not None and request is self._trial:
            self._trial = None
        if request is not None:
            self._on_removed(number)
        return request
