"""An answer as it arrives: server-sent events in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import httpx
import msgspec

from lamella.client.refusals import error_of
from lamella.core.errors import RemoteFailed, RemoteInvalid
from lamella.core.foreign import UNREADABLE

T = TypeVar("T")
_DONE = "[DONE]"


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    """As much of OpenAI's ``chat.completion.chunk`` as is looked at."""

    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None


@dataclass(slots=True)
class AnswerStats:
    """What an answer was, as far as the server has said it by now.

    Attributes:
        model: the name that the server gives it.
        finish_reason: OpenAI's.
        n_prompt, n_generated: tokens.
        first_seconds: until the first text; None before.
        text_seconds: from there to the last event.
    """

    model: str = ""
    finish_reason: str | None = None
    n_prompt: int = 0
    n_generated: int = 0
    first_seconds: float | None = None
    text_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        return (self.n_generated - 1) / self.text_seconds if self.text_seconds and self.n_generated > 1 else 0.0


class StreamedAnswer:
    """Pieces of text, once.  ``close`` before the end ends the request on the server."""

    def __init__(
        self, request: AbstractContextManager[httpx.Response], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Take over a request that is sent when the first piece is asked for."""
        self.stats = AnswerStats()
        self._clock = clock
        self._pieces = self._read(request)

    def __iter__(self) -> Iterator[str]:
        """Pieces; "" where the server only says that it lives, so that the caller may look around.

        Raises:
            RemoteFailed: the server gave up, or the connection broke.
            RemoteInvalid: it speaks something else.
            LamellaError: what ``request`` raises.
        """
        return self._pieces

    def close(self) -> None:
        """Hang up."""
        self._pieces.close()

    def _read(self, request: AbstractContextManager[httpx.Response]) -> Generator[str, None, None]:
        begun = self._clock()
        with request as response:
            for chunk in chunks(lines_of(response.iter_text())):
                piece = self._take(chunk) if chunk else ""
                now = self._clock()
                if piece and self.stats.first_seconds is None:
                    self.stats.first_seconds = now - begun
                self.stats.text_seconds = now - begun - (self.stats.first_seconds or 0.0)
                yield piece

    def _take(self, chunk: _Chunk) -> str:
        self.stats.model = chunk.model or self.stats.model
        if chunk.usage:
            self.stats.n_prompt, self.stats.n_generated = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            self.stats.finish_reason = choice.finish_reason or self.stats.finish_reason
        return "".join(choice.delta.content or "" for choice in chunk.choices)


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    """Text that comes in pieces, split where lines end in a stream of events, and nowhere else.

    ``str.splitlines``, which httpx splits by, ends lines at U+2028 and others too, which answers may have.
    """
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (line.removesuffix("\r") for line in whole)
    if rest:
        yield rest


def chunks(lines: Iterable[str]) -> Iterator[_Chunk | None]:
    """The events of a stream up to its end; None for a comment.

    Raises:
        RemoteFailed: the server says that it failed, or stops before the end.
        RemoteInvalid: an event is none of OpenAI's.
    """
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == _DONE:
                return
            yield _chunk(data)
    raise RemoteFailed("the connection ended in the middle of the answer")


def _chunk(data: str) -> _Chunk:
    try:
        if told := error_of(msgspec.json.decode(data)) if '"error"' in data else None:
            raise RemoteFailed(f"the server gave up: {told}")
        return msgspec.json.decode(data, type=_Chunk)
    except UNREADABLE as error:
        raise RemoteInvalid(f"the server sent an event that is none of OpenAI's: {error}") from None


def answer_of(response: httpx.Response, kind: type[T]) -> T:
    """What an answer that was read says, of a JSON object's fields as many as ``kind`` has.

    Raises:
        RemoteInvalid: something else; another kind of server answers at that address.
    """
    try:
        return msgspec.json.decode(response.content, type=kind)
    except UNREADABLE as error:
        said = f"{response.request.url} answers, but not as an OpenAI-compatible server does: {error}"
        raise RemoteInvalid(said) from None
