"""Requests under way in the engine: begun together, watched for clients that leave, measured when they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from starlette.types import Receive

from lamella.batching.messages import Accepted, Chat, Finished, Generate, Scored, TokenEvent, TokenScore
from lamella.core.errors import Draining
from lamella.serving.engine_client import StreamEvent
from lamella.serving.front import Front
from lamella.serving.metrics import Timing
from lamella.serving.openai.leaving import client_gone, client_leaves
from lamella.serving.openai.parameters import check_tokens

T = TypeVar("T")
_CUT_SHORT = "The server is shutting down; the answer is not complete."


class Run:
    """One choice: an engine's stream, and when its tokens came.

    Attributes:
        accepted: the engine's first answer; None before ``begin``.
        finished: its last one; None before.
    """

    def __init__(self, front: Front, request: Generate) -> None:
        """Submit.

        Raises:
            Unavailable: the engine takes nothing now.
        """
        self._front, self._request = front, request
        self._begun = front.clock()
        self._first: float | None = None
        self._last: float | None = None
        self._n_tokens = 0
        self._early: StreamEvent | None = None
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None
        self._stream = front.client.generate(request)
        front.gate.keep(self._stream)
        self._events = aiter(self._stream)

    async def begin(self) -> None:
        """Wait until the engine has understood the prompt.

        Raises:
            ApiError: the prompt is longer than this server takes.
            RequestRefused: the engine says no.
            EngineUnavailable: there is none.
            Draining: the server ended the request while it waited.
        """
        event = await self._next()
        if isinstance(event, Accepted):
            self.accepted = event
            param = "messages" if isinstance(self._request.prompt, Chat) else "prompt"
            check_tokens(event.prompt_tokens, self._front.settings.limits, param)
        else:
            self._early = event

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        """The next event after ``Accepted``.

        Raises:
            Draining: the server ended the request, not its client.
            RequestRefused, EngineUnavailable: as ``begin``.
        """
        if self.finished:
            raise StopAsyncIteration
        event, self._early = self._early, None
        if event is None:
            event = await self._next()
        if type(event) is TokenEvent:
            self._last = self._front.clock()
            self._n_tokens += 1
            if self._first is None:
                self._first = self._last
        elif type(event) is Finished:
            self._end(event)
        return event

    async def rest(self) -> tuple[str, list[TokenScore], Finished]:
        """All its text, that of an echoed prompt before it, the scores of its tokens, and its end.

        Raises:
            Draining, RequestRefused, EngineUnavailable: as ``begin``.
        """
        texts: list[str] = []
        scores: list[TokenScore] = []
        async for event in self:
            if isinstance(event, TokenEvent):
                texts.append(event.text)
                if event.score:
                    scores.append(event.score)
            elif isinstance(event, Scored):
                texts.append(event.text)
                scores += event.scores
            elif isinstance(event, Finished):
                texts.append(event.text)
        assert self.finished is not None
        return "".join(texts), scores, self.finished

    async def _next(self) -> StreamEvent:
        """A stream that ends without ``Finished`` was cancelled, and not by its client: nobody would be reading it."""
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            raise Draining(_CUT_SHORT) from None

    def cancel(self) -> None:
        """Ask the engine to end it."""
        self._stream.cancel()

    def close(self) -> None:
        """End it if it has not ended."""
        self._front.gate.forget(self._stream)
        if self.finished is None:
            self._stream.cancel()

    def _end(self, event: Finished) -> None:
        self.finished = event
        timing = Timing(self._begun, self._first, self._last, self._n_tokens)
        self._front.finished(event, timing, self._request)
        if event.reason == "cancelled":
            raise Draining(_CUT_SHORT)


class Runs:
    """All choices of one HTTP request."""

    def __init__(self, runs: Sequence[Run], n_choices: int) -> None:
        self._runs, self._n_choices = runs, n_choices
        self._client_gone = False

    @classmethod
    async def begin(cls, front: Front, requests: Sequence[Generate], n_choices: int, receive: Receive) -> Self:
        """Submit all and wait until the engine has understood them; none is left where one is refused.

        Args:
            n_choices: for each prompt; requests for one prompt stand together.

        Raises:
            ApiError, RequestRefused, Unavailable: of the first that is refused; 499 when the client has gone.
        """
        front.gate.check()
        front.client.check_room(len(requests))
        begun: list[Run] = []
        runs = cls(begun, n_choices)
        try:
            begun.extend(Run(front, request) for request in requests)  # those before a refusal stay in the list
            await runs.watched(receive, together(run.begin() for run in begun))
        except BaseException:
            runs.close()
            raise
        return runs

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    async def watched(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; where the client leaves before it is done, end all runs.

        Raises:
            ApiError: 499, the client has gone.
        """
        watcher = asyncio.create_task(self._watch(receive))
        try:
            return await work
        except Draining:
            if self._client_gone:
                raise client_gone() from None
            raise
        finally:
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        await client_leaves(receive)
        self._client_gone = True
        for run in self._runs:
            run.cancel()

    def close(self) -> None:
        """End all that have not ended."""
        for run in self._runs:
            run.close()

    def usage(self) -> dict[str, Any]:
        """Tokens of finished runs, as OpenAI counts them: a prompt once, however many choices it has."""
        ends = [run.finished for run in self._runs if run.finished]
        n_prompt = sum(end.prompt_tokens for end in ends[:: self._n_choices])
        n_written = sum(end.generated_tokens for end in ends)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_written,
            "total_tokens": n_prompt + n_written,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends[:: self._n_choices])},
        }


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; where one fails, the others are cancelled and its error is raised."""
    every = list(work)
    if len(every) == 1:
        return [await every[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in every]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
