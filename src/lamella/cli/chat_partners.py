"""Who a chat in the terminal can be with: an engine in this process, or a server."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lamella.cli.describe import describe_stats, describe_switch
from lamella.core.units import format_seconds
from lamella.llama.sampling import SamplingOptions
from lamella.run.chat import Message, as_template_messages
from lamella.run.engine import Engine
from lamella.run.generation import Generation

if TYPE_CHECKING:
    from lamella.client.answers import StreamedAnswer
    from lamella.client.server import ServerClient, SwitchDone


class EnginePartner:
    """A ``Partner`` in this process."""

    def __init__(self, engine: Engine, sampling: SamplingOptions, max_tokens: int, stop: Sequence[str]) -> None:
        self._engine, self._sampling, self._max_tokens, self._stop = engine, sampling, max_tokens, stop
        self._generation: Generation | None = None

    def greeting(self) -> str:
        return f"variant {self._engine.variant}"

    def answer(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        self._generation = self._engine.chat(
            messages, max_tokens=self._max_tokens, sampling=self._sampling, stop=self._stop
        )
        return (token.text for token in self._generation)

    def last_answer(self) -> str:
        assert self._generation is not None
        return describe_stats(self._generation.stats, self._engine.variant)

    def variants(self) -> str:
        return ", ".join(f"{v} (running)" if v == self._engine.variant else v for v in self._engine.variants)

    def prepare(self, variant: str) -> Future[Any]:
        return self._engine.prepare(variant)

    def switch(self, variant: str, prepared: Future[Any]) -> str:
        prepared.result()
        return describe_switch(self._engine.switch(variant))


class ServerPartner:
    """A ``Partner`` behind HTTP.  A switch there is for all who use the server."""

    def __init__(self, server: ServerClient, model: str, **fields: Any) -> None:
        """Talk to ``model``; ``fields`` go with every request."""
        self._server, self._model, self._fields = server, model, fields
        self._answer: StreamedAnswer | None = None
        self._switching = ThreadPoolExecutor(1)

    def greeting(self) -> str:
        return f"{self._model} at {self._server.url}"

    def answer(self, messages: Sequence[Message]) -> StreamedAnswer:
        self._answer = self._server.chat(as_template_messages(messages), self._model, **self._fields)
        return self._answer

    def last_answer(self) -> str:
        assert self._answer is not None
        stats = self._answer.stats
        first = f"first text after {format_seconds(stats.first_seconds)}, " if stats.first_seconds is not None else ""
        rate = f" at {stats.tokens_per_second:.1f}/s" if stats.tokens_per_second else ""
        return f"[{stats.model}: prompt of {stats.n_prompt} tokens, {first}{stats.n_generated} tokens{rate}]"

    def variants(self) -> str:
        return ", ".join(f"{v.name} (running)" if v.is_running else v.name for v in self._server.variants())

    def prepare(self, variant: str) -> Future[SwitchDone]:
        """The server switches when it is ready; it is told at once."""
        return self._switching.submit(self._server.switch, variant)

    def switch(self, variant: str, prepared: Future[SwitchDone]) -> str:
        done = prepared.result()
        ready = f", ready after {format_seconds(done.prepare_seconds)}" if done.prepare_seconds else ""
        return (
            f"{done.before} -> {done.after}: {done.n_shards} shards, {done.n_weights} weights "
            f"in {format_seconds(done.stall_seconds)}{ready}"
        )
