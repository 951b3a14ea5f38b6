"""What the front needs of an engine: an interface, so that routes can be tested with a fake one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from lamella.batching.messages import (
    Accepted,
    Embedded,
    Finished,
    Generate,
    Hello,
    Prepared,
    Scored,
    Status,
    Switched,
    TokenEvent,
)

StreamEvent = Accepted | Scored | TokenEvent | Finished


class EngineStream(Protocol):
    """The events of one request, in order: ``Accepted``, perhaps ``Scored``, tokens, ``Finished``.

    Iterating raises ``RequestRefused`` where the engine refuses, and ``EngineUnavailable`` where no engine can be
    brought up again.  A restart of the engine in between is not seen.
    """

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...

    def cancel(self) -> None:
        """The client is gone: end the request.  May be called more than once, and after the end."""


class EngineClient(Protocol):
    """An engine that is kept alive."""

    @property
    def facts(self) -> Hello | None:
        """Of the running model; None while none has been up."""

    @property
    def status(self) -> Status | None:
        """The last heartbeat; None while none has been up."""

    @property
    def n_restarts(self) -> int:
        """Engines started after the first."""

    @property
    def n_open(self) -> int:
        """Requests that were submitted and have not finished."""

    @property
    def is_ready(self) -> bool:
        """Whether an engine answers now."""

    def check_room(self, n_requests: int) -> None:
        """Whether so many requests may be submitted now, before anything else happens in this event loop.

        Raises:
            InvalidRequest: they would not fit even if nothing else were open.
            QueueFull: they would, but not beside what is open.
            Unavailable: nothing is taken now.
        """

    def generate(self, request: Generate) -> EngineStream:
        """Submit a request; its ``id`` is replaced by the client's own number.

        Raises:
            QueueFull: too many requests are open.
            EngineUnavailable: no engine will come up again.
        """

    async def embed(self, inputs: list[str | list[int]], *, most_tokens: int | None = None) -> Embedded:
        """One vector for each input; cancelled, the engine stops too.

        Args:
            most_tokens: of one input; None for what the context holds.

        Raises:
            RequestRefused: the model has none, or an input is too long.
            QueueFull, EngineUnavailable: as ``generate``.
        """

    async def tokenize(self, text: str, *, add_special: bool = True, most_tokens: int | None = None) -> list[int]:
        """The token ids of a text.

        Args:
            most_tokens: of a text; None for what the context holds.

        Raises:
            RequestRefused: the text certainly has more (512 characters for each).
        """

    async def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens.  Raises ``RequestRefused`` for one that the vocabulary has not."""

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        """Run at another variant.  Raises ``RequestRefused``; nothing has changed then.

        Args:
            saves_memory: take no more memory than now meanwhile, and keep nothing warm after it.
        """

    async def prepare(self, variant: str) -> Prepared:
        """Read a variant in, so that a later switch takes a millisecond."""
