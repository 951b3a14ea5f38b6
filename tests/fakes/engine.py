"""An engine that writes what a script says: the front's tests need no model.

    engine = FakeEngine(Script(pieces=["Hello", " world"]))

Everything is deterministic: tokens are numbered pieces, a prompt has as many tokens as words, and where a test needs an
engine to be slow, the engine waits for an event that the test sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from lamella.batching.messages import (
    Accepted,
    Chat,
    Embedded,
    Finished,
    FinishReason,
    Generate,
    Hello,
    Logprob,
    Prepared,
    Scored,
    Status,
    Switched,
    TokenEvent,
    TokenScore,
    VariantFacts,
)
from lamella.core.errors import InvalidRequest, QueueFull, RequestRefused
from lamella.serving.engine_client import StreamEvent

WIDTH = 3
"""Numbers in an embedding."""

FACTS = Hello(
    protocol=1,
    pid=1,
    model="tiny",
    architecture="llama",
    variant="large",
    variants=[
        VariantFacts(name="large", n_bytes=2000, bits_per_weight=8.5, predicted_kl=0.001),
        VariantFacts(name="small", n_bytes=1000, bits_per_weight=4.5, predicted_kl=0.1),
    ],
    n_ctx=64,
    n_cells=256,
    n_sequences=4,
    n_vocabulary=1000,
    n_trained=128,
    has_chat=True,
    has_embeddings=True,
    load_seconds=0.5,
    bos_token="<s>",
    eos_token="</s>",
    chat_template="{{ messages }}",
)
STATUS = Status(
    variant="large",
    step_seconds_now=0.0,
    n_running=1,
    n_waiting=2,
    n_parked=1,
    cells_used=40,
    n_steps=7,
    n_prompt_tokens=0,
    n_cached_tokens=0,
    n_generated_tokens=0,
    n_switches=5,
    switch_seconds=0.25,
    flip_seconds=0.5,
    mapped_bytes=3000,
    private_bytes=4000,
    warm=["large"],
)


@dataclass
class Script:
    """What the engine does with a request.

    Attributes:
        pieces: texts of its tokens; the last is held back until ``Finished`` with ``held_back``.
        reason: how it ends.
        held_back: text that comes with ``Finished``.
        calls_tools: as in ``Accepted``.
        refusal: raised in place of an answer.
        submit_error: raised by ``generate`` itself.
        break_after, break_with: after so many tokens, this is raised; with None the stream ends there, as one does that
            the server cancels.  -1: before ``Accepted``.
        gate: waited for before token ``gate_at`` (from 0), or before ``Accepted`` where that is -1.
    """

    pieces: Sequence[str] = ("Hello", " world")
    reason: FinishReason = "stop"
    held_back: str = ""
    calls_tools: bool = False
    cached_tokens: int = 0
    refusal: Exception | None = None
    submit_error: Exception | None = None
    break_after: int | None = None
    break_with: Exception | None = None
    gate: asyncio.Event | None = None
    gate_at: int = 0


@dataclass
class FakeEngine:
    """An ``EngineClient``.

    Attributes:
        script: for requests; ``choose`` may give each its own.
        requests: all that came.
        streams: of them, in order.
        calls: switches and preparations.
        n_places: requests that may be open at once.
        embed_gate: waited for before vectors are given; ``n_embed_cancelled`` counts those who did not wait so long.
    """

    script: Script = field(default_factory=Script)
    choose: Callable[[Generate], Script] | None = None
    facts: Hello | None = FACTS
    status: Status | None = STATUS
    n_open: int = 0
    n_restarts: int = 0
    is_ready: bool = True
    requests: list[Generate] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    n_places: int = 1000
    embed_gate: asyncio.Event | None = None
    n_embedding: int = 0
    n_embed_cancelled: int = 0

    def check_room(self, n_requests: int) -> None:
        if n_requests > self.n_places:
            raise InvalidRequest(f"{n_requests} at once, and {self.n_places} places")
        if self.n_open + n_requests > self.n_places:
            raise QueueFull("Full.", retry_after_seconds=3)

    def generate(self, request: Generate) -> FakeStream:
        script = self.choose(request) if self.choose else self.script
        if script.submit_error:
            raise script.submit_error
        request = msgspec.structs.replace(request, id=len(self.requests))
        msgspec.msgpack.encode(request)  # the real one sends it: what cannot be sent must not come here
        self.requests.append(request)
        self.streams.append(FakeStream(self, request, script))
        return self.streams[-1]

    async def embed(self, inputs: list[str | list[int]], *, most_tokens: int | None = None) -> Embedded:
        if self.facts is None or not self.facts.has_embeddings:
            raise RequestRefused("This model has no embeddings.", why="no_embeddings")
        if most_tokens is not None and any(_n_tokens(text) > most_tokens for text in inputs):
            raise RequestRefused("An input is too long.", why="context_length")
        msgspec.msgpack.encode(inputs)
        await self._wait_to_embed()
        vectors = [[float(_n_tokens(text)), 0.5, -1.25] for text in inputs]
        return Embedded(id=1, vectors=vectors, prompt_tokens=sum(_n_tokens(text) for text in inputs))

    async def _wait_to_embed(self) -> None:
        self.n_embedding += 1
        try:
            if self.embed_gate:
                await self.embed_gate.wait()
        except asyncio.CancelledError:
            self.n_embed_cancelled += 1
            raise

    async def tokenize(self, text: str, *, add_special: bool = True, most_tokens: int | None = None) -> list[int]:
        msgspec.msgpack.encode(text)
        if most_tokens is not None and len(text) > 512 * most_tokens:
            raise RequestRefused("too long", why="context_length")
        return [1, *map(len, text.split())] if add_special else [*map(len, text.split())]

    async def detokenize(self, tokens: list[int]) -> str:
        if max(tokens, default=0) >= 1000:
            raise RequestRefused("tokens outside the vocabulary", why="invalid")
        return " ".join("x" * token for token in tokens)

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        self._check(variant)
        self.calls.append(("switch", variant, "recompute" if recompute_cache else "keep"))
        return Switched(
            id=1, before="large", after=variant, n_weights=9, n_shards=3, stall_seconds=0.001, prepare_seconds=0.2
        )

    async def prepare(self, variant: str) -> Prepared:
        self._check(variant)
        self.calls.append(("prepare", variant))
        return Prepared(id=1, variant=variant, seconds=0.1)

    def _check(self, variant: str) -> None:
        names = [known.name for known in self.facts.variants] if self.facts else []
        if variant not in names:
            raise RequestRefused(
                f"There is no variant '{variant}'; there are {', '.join(names)}.", why="unknown_variant"
            )


class FakeStream:
    """An ``EngineStream`` of one script.

    Attributes:
        is_cancelled: whether somebody cancelled it before its end.
        is_over: whether ``Finished`` was read.
    """

    def __init__(self, engine: FakeEngine, request: Generate, script: Script) -> None:
        self._engine, self._request, self._script = engine, request, script
        self._cancelled = asyncio.Event()
        self.is_over = False
        engine.n_open += 1

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        if not self.is_over:
            self._cancelled.set()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        script, request = self._script, self._request
        if script.refusal:
            raise script.refusal
        if script.break_after == -1:
            return
        n_prompt = _prompt_tokens(request)
        if script.gate and script.gate_at < 0:
            await self._wait(script.gate)
            if self.is_cancelled:
                yield self._finished("cancelled", n_prompt, 0)
                return
        yield Accepted(id=request.id, prompt_tokens=n_prompt, calls_tools=script.calls_tools)
        if request.echo:
            yield _scored(request)
        n_tokens = 0
        for n_tokens, piece in enumerate(self._pieces()):
            if n_tokens == script.break_after:
                if script.break_with is None:
                    return
                raise script.break_with
            if n_tokens == script.gate_at and script.gate:
                await self._wait(script.gate)
            if self.is_cancelled:
                yield self._finished("cancelled", n_prompt, n_tokens)
                return
            yield TokenEvent(request.id, n_tokens, piece, _score(n_tokens, piece, request.n_logprobs))
            await asyncio.sleep(0)
        yield self._finished(None, n_prompt, len(self._pieces()))

    def _pieces(self) -> Sequence[str]:
        return self._script.pieces[: self._request.max_tokens]

    async def _wait(self, gate: asyncio.Event) -> None:
        """Until the test opens the gate, or the request is cancelled."""
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._cancelled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _finished(self, reason: FinishReason | None, n_prompt: int, n_tokens: int) -> Finished:
        self.is_over = True
        self._engine.n_open -= 1
        is_cut = len(self._pieces()) < len(self._script.pieces)
        return Finished(
            id=self._request.id,
            reason=reason or ("length" if is_cut else self._script.reason),
            text="" if reason else self._script.held_back,
            prompt_tokens=n_prompt,
            cached_tokens=self._script.cached_tokens,
            generated_tokens=n_tokens,
        )


def _score(token: int, piece: str, n_logprobs: int | None, is_first: bool = False) -> TokenScore | None:
    """Token k has log-probability -k/4; the likeliest others are ``alt1``, ``alt2``, ..."""
    if n_logprobs is None:
        return None
    chosen = Logprob(token, piece.encode(), -token / 4)
    others = [Logprob(900 + place, f"alt{place}".encode(), -1.0 - place) for place in range(1, n_logprobs)]
    return TokenScore(chosen, is_first, [chosen, *others][:n_logprobs])


def _scored(request: Generate) -> Scored:
    words = request.prompt.split(" ") if isinstance(request.prompt, str) else [f"<{t}>" for t in request.prompt]  # type: ignore[union-attr]
    pieces = [word if place == 0 else f" {word}" for place, word in enumerate(words)]
    scores = [_score(place, piece, request.n_logprobs, place == 0) for place, piece in enumerate(pieces)]
    return Scored(
        id=request.id,
        text="".join(pieces),
        scores=[score for score in scores if score],
    )


def _prompt_tokens(request: Generate) -> int:
    if isinstance(request.prompt, Chat):
        return sum(_n_tokens(message["content"]) for message in request.prompt.messages)
    return _n_tokens(request.prompt)


def _n_tokens(prompt: str | list[int]) -> int:
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)
