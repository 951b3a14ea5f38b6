"""An engine that is kept alive: its process may die or hang, and clients see a pause.

    async with SupervisedEngine(EngineSettings(store="store")) as engine:
        async for event in engine.generate(Generate(id=0, prompt="Once upon a time")):
            ...

``keeper.py`` keeps a process (``child.py``) running: ``watch.py`` says whether it hangs, ``restarts.py`` whether
another is started.  ``traffic.py`` carries messages between that process and what is open (``open_requests.py``,
``questions.py``), says at which variant the next one starts (``last_good.py``), and sends it what has no answer yet.
All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import msgspec

from lamella.batching.messages import (
    CacheSaved,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Generate,
    Hello,
    Prepare,
    Prepared,
    SaveCache,
    Status,
    Switch,
    Switched,
    Tokenize,
    Tokenized,
)
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable, InvalidRequest, LamellaError, QueueFull
from lamella.serving.engine_client import EngineStream
from lamella.serving.keeper import EngineKeeper
from lamella.serving.questions import Answer, Asked
from lamella.serving.supervision import EngineEvent, SupervisorOptions, TrafficWatcher
from lamella.serving.traffic import Traffic


class SupervisedEngine:
    """An ``EngineClient`` over a process that is replaced when it dies."""

    def __init__(
        self,
        settings: EngineSettings,
        options: SupervisorOptions | None = None,
        *,
        on_line: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started yet.

        Args:
            on_line: gets what engines write on standard output and error.
        """
        self._options = options or SupervisorOptions()
        self._numbers = itertools.count(1)
        self._refusal: Callable[[], LamellaError] | None = None  # what new requests get while nothing may run
        self._traffic = Traffic(
            settings.variant,
            self._options.poison_limit,
            lambda message: self._engine.send(message),
            clock,
            partial(EngineUnavailable, "the engine was not started"),
        )
        self._engine = EngineKeeper(self._traffic, settings, self._options, on_line=on_line, clock=clock)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- what is seen of it ------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Hello | None:
        """Of the running model, ``variant`` as of now; None while none has been up."""
        return self._traffic.facts

    @property
    def status(self) -> Status | None:
        """The last heartbeat; None while there was none."""
        return self._traffic.status

    @property
    def is_ready(self) -> bool:
        """Whether an engine answers now."""
        return self._engine.is_up

    @property
    def n_open(self) -> int:
        """Requests that were submitted and have not finished, embeddings included."""
        return self._traffic.n_open

    @property
    def n_cells_used(self) -> int:
        """KV cells in use at the last heartbeat."""
        return self.status.cells_used if self.status else 0

    @property
    def n_restarts(self) -> int:
        """Engines started after the first."""
        return self._engine.n_restarts

    @property
    def last_failure(self) -> str:
        """How the last engine ended that nobody had asked to, for operators; "" while none has."""
        return self._traffic.last_failure

    def listen(self, listener: Callable[[EngineEvent], object]) -> None:
        """Have a function called with every ``EngineEvent`` from now on, soon after it happened."""
        self._traffic.listeners.append(listener)

    def watch(self, watcher: TrafficWatcher) -> None:
        """Have a watcher told of every request and every message from now on."""
        self._traffic.watchers.append(watcher)

    # --- what can be asked of it -------------------------------------------------------------------------------------

    def check_room(self, n_requests: int) -> None:
        """See ``EngineClient``: all of a batch or nothing, so that no half of one is computed for nobody."""
        self._check_open()
        assert self.facts is not None  # or it would be closed
        n_sequences, max_queue = self.facts.n_sequences, self._options.max_queue
        n_places = n_sequences + max_queue
        if n_requests > n_places:
            raise InvalidRequest(
                f"{n_requests} choices at once; this server takes at most {n_places}: "
                f"{n_sequences} run and {max_queue} wait (--sequences, --queue)"
            )
        if self.n_open + n_requests > n_places:
            n_ahead = max(1, self.n_open + n_requests - n_places)
            raise QueueFull(
                f"{self.n_open} requests are open: {n_sequences} run at once and {max_queue} may wait",
                retry_after_seconds=max(1.0, self._traffic.mean_seconds * n_ahead / n_sequences),
            )

    def generate(self, request: Generate) -> EngineStream:
        """See ``EngineClient``; raises ``EngineUnavailable`` where no engine will come up again."""
        self.check_room(1)
        return self._traffic.submit(msgspec.structs.replace(request, id=next(self._numbers)))

    async def embed(self, inputs: list[str | list[int]], *, most_tokens: int | None = None) -> Embedded:
        """See ``EngineClient``; raises what ``generate`` raises besides."""
        self.check_room(1)
        answer = await self._ask(Embed(id=next(self._numbers), inputs=inputs, most_tokens=most_tokens))
        assert isinstance(answer, Embedded)
        return answer

    async def tokenize(self, text: str, *, add_special: bool = True, most_tokens: int | None = None) -> list[int]:
        """See ``EngineClient``."""
        message = Tokenize(id=next(self._numbers), text=text, add_special=add_special, most_tokens=most_tokens)
        answer = await self._ask(message)
        assert isinstance(answer, Tokenized)
        return answer.tokens

    async def detokenize(self, tokens: list[int]) -> str:
        """See ``EngineClient``."""
        answer = await self._ask(Detokenize(id=next(self._numbers), tokens=tokens))
        assert isinstance(answer, Detokenized)
        return answer.text

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        """See ``EngineClient``.  An engine that dies of it is replaced by one at the variant that ran before."""
        cache: Literal["recompute", "keep"] = "recompute" if recompute_cache else "keep"
        answer = await self._ask(
            Switch(id=next(self._numbers), variant=variant, cache=cache, saves_memory=saves_memory)
        )
        assert isinstance(answer, Switched)
        return answer

    async def prepare(self, variant: str) -> Prepared:
        """See ``EngineClient``."""
        answer = await self._ask(Prepare(id=next(self._numbers), variant=variant))
        assert isinstance(answer, Prepared)
        return answer

    async def save_cache(self, limit_seconds: float) -> CacheSaved:
        """Have the engine write its KV cache for the next engine, which begins with it; soon before ``hold``.

        Raises:
            LamellaError: there is no engine, or it cannot, or has not within the limit.
            OSError: the system makes no folder.
        """
        if not self.is_ready:
            raise EngineUnavailable("no engine is up whose KV cache could be saved")
        left = self._engine.left
        message = SaveCache(id=next(self._numbers), folder=left.begin())
        try:
            async with asyncio.timeout(limit_seconds):
                answer = await self._ask(message)
        except TimeoutError:
            raise EngineUnavailable(f"the KV cache was not saved within {limit_seconds:g} s") from None
        assert isinstance(answer, CacheSaved)
        left.complete()
        return answer

    async def _ask(self, message: Asked) -> Answer:
        self._check_open()
        question = self._traffic.ask(message)
        try:
            return await question.answer
        finally:
            self._traffic.forget(message.id)

    def _check_open(self) -> None:
        if self._traffic.closed_for is not None:
            raise self._traffic.closed_for()

    # --- its life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine; returns when it is ready.

        Raises:
            EngineUnavailable: it cannot be started, in its own words where it found some.  Nothing runs then.
        """
        await self._engine.start()
        self._traffic.closed_for = None

    def hold(self, why: str, *, refuses: bool) -> None:
        """End the engine and start none until ``use``; what is open waits, until its deadline.

        Args:
            why: for operators; and for clients where new requests are refused.
            refuses: new requests get ``EngineUnavailable``; else they wait too.
        """
        if refuses and self._traffic.closed_for is None:
            self._traffic.closed_for = self._refusal = partial(EngineUnavailable, why)
        self._engine.hold(why)

    def use(self, settings: EngineSettings, variant: str | None = None) -> None:
        """Go on with an engine of other settings: what is open goes on from its prompt and the tokens sent.

        Args:
            variant: for the engine to begin at; None for the one that runs.
        """
        if variant is not None:
            self._traffic.run_next(variant)
        if self._traffic.closed_for is self._refusal:
            self._traffic.closed_for = self._refusal = None
        self._engine.use(settings)

    async def close(self) -> None:
        """End the engine and all that is open.  May be called more than once."""
        self._traffic.gave_up(partial(EngineUnavailable, "the server was closed"))
        await self._engine.close()
