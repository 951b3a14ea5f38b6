"""The engine loop: one step of the model after another, for all requests together.

Each turn takes in what has arrived, makes changes of variant whose pages are there, and lets the scheduler run a step.
One thread runs the loop and alone touches llama.cpp's context.  ``receive`` belongs to another, which renders and
tokenizes prompts while the model computes; ``status`` may be asked by any.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from lamella.batching.cache import SequenceCache
from lamella.batching.embedding import EmbedJob, EmbedJobs
from lamella.batching.engine_parts import EngineParts, prompt_cache_bytes
from lamella.batching.filling import Filling
from lamella.batching.messages import (
    Accepted,
    CacheSaved,
    Cancel,
    Chat,
    Detokenize,
    Detokenized,
    Embed,
    EngineMessage,
    FrontMessage,
    Generate,
    Hello,
    Prepare,
    SaveCache,
    Scored,
    Status,
    Stop,
    Switch,
    Tokenize,
    Tokenized,
)
from lamella.batching.opened_context import cache_bytes
from lamella.batching.prompts import Prompt, least_tokens, too_long
from lamella.batching.refusals import refusal
from lamella.batching.running import RunningRequest
from lamella.batching.scheduler import Scheduler
from lamella.batching.served import ServedVariants
from lamella.batching.settings import EngineSettings
from lamella.core.errors import LamellaError, RequestRefused
from lamella.llama.sampling import Sampler
from lamella.run.process_memory import private_bytes

Arrival = RunningRequest | EmbedJob | Switch | Prepare | SaveCache | Cancel | Stop
Send = Callable[[EngineMessage], None]
DEADLINE_CHECK_SECONDS = 0.1
"""How often deadlines of waiting requests are looked at while no step runs."""


class EngineLoop:
    """Serves requests until it is told to stop."""

    def __init__(self, parts: EngineParts, send: Send) -> None:
        """Use ``EngineLoop.open``."""
        self._parts, self._send = parts, send
        self._arrivals: deque[Arrival] = deque()
        self._has_news = threading.Event()
        self._variants = ServedVariants(
            parts.live,
            send,
            allowed=[v.name for v in parts.variants],
            on_switched=self._after_switch,
            wake=self._has_news.set,
        )
        self._cache = SequenceCache(
            parts.context,
            parts.n_slots,
            parts.n_cells,
            can_share_parts=not parts.model.has_recurrent_state,
            most_kept_bytes=prompt_cache_bytes(parts.settings),
            may_copy_out=self._has_room_for,
        )
        self._n_taken_over = self._take_over()
        self._scheduler = Scheduler(
            parts.context,
            self._cache,
            self._variants,
            send,
            n_sequences=parts.settings.n_sequences,
            n_batch=parts.settings.n_batch,
            longest_step_seconds=parts.settings.longest_step_seconds,
            filling=Filling() if _fills(parts.settings) else None,
        )
        self._embeddings = EmbedJobs(parts.open_embedder, send)
        self._n_arrived = 0
        self._last_read: tuple[str | list[int] | Chat, Prompt | int] | None = None
        self._busy_since = 0.0
        self._recomputes = False
        self._is_stopping = False

    @classmethod
    def open(cls, settings: EngineSettings, send: Send) -> Self:
        """Load the model.

        Raises:
            LamellaError: the store, the variant or llama.cpp says why not.
        """
        return cls(EngineParts.open(settings), send)

    def close(self) -> None:
        """Free everything."""
        self._scheduler.close()
        self._variants.close()
        self._parts.close()

    def hello(self) -> Hello:
        """What this engine is."""
        return msgspec.structs.replace(self._parts.hello(self._variants.name), n_taken_over=self._n_taken_over)

    def _has_room_for(self, n_tokens: int) -> bool:
        """Whether the memory ceiling, if there is one, leaves room for so many tokens outside of the KV cache."""
        spare = self._parts.live.memory.spare_bytes
        needed = cache_bytes(n_tokens, self._parts.model.kv_bytes_per_token, self._parts.settings.kv_type)
        return spare is None or needed <= spare

    def _take_over(self) -> int:
        """Begin with the KV cache that the engine before has left; what cannot be used is computed again."""
        folder = self._parts.settings.cache_folder
        if not folder:
            return 0
        try:
            return self._cache.load(Path(folder))
        except LamellaError as error:
            sys.stderr.write(f"the KV cache is computed again: {error}\n")
            return 0

    # --- from other threads ------------------------------------------------------------------------------------------

    def receive(self, message: FrontMessage) -> None:
        """Take a message in; the loop acts on it between two steps."""
        if isinstance(message, Generate | Embed | Tokenize | Detokenize):
            self._take_texts(message)
        else:
            self._arrivals.append(message)
        self._has_news.set()

    def _take_texts(self, message: Generate | Embed | Tokenize | Detokenize) -> None:
        try:
            match message:
                case Generate():
                    self._arrivals.append(self._understand(message))
                case Embed():
                    self._arrivals.append(EmbedJob(message.id, self._inputs(message)))
                case Tokenize():
                    self._send(Tokenized(id=message.id, tokens=self._tokens(message)))
                case Detokenize():
                    self._send(Detokenized(id=message.id, text=self._text(message.tokens)))
        except LamellaError as error:
            self._send(refusal(message.id, error))

    def _inputs(self, message: Embed) -> list[list[int]]:
        """Tokens of the texts to embed, each short enough."""
        most = self._most_tokens(message)
        inputs: list[list[int]] = []
        for i, text in enumerate(message.inputs):
            if least_tokens(text) <= most:
                inputs.append(self._parts.prompts.make(text, goes_on=False).tokens)
            if len(inputs) == i or len(inputs[i]) > most:
                said = f"Input {i} is longer than the {most} tokens that this server takes of one."
                raise RequestRefused(said, why="context_length")
        return inputs

    def _tokens(self, message: Tokenize) -> list[int]:
        """Of a text that may be longer than a prompt may: whether it is, is what many ask for."""
        most, least = self._most_tokens(message), least_tokens(message.text)
        if least > most:
            said = f"The text has at least {least} tokens, and this server takes at most {most} of one."
            raise RequestRefused(said, why="context_length")
        return self._parts.model.vocabulary.tokenize(message.text, add_special=message.add_special)

    def _most_tokens(self, message: Embed | Tokenize) -> int:
        n_ctx = self._parts.settings.n_ctx
        return n_ctx if message.most_tokens is None else min(n_ctx, message.most_tokens)

    def _text(self, tokens: list[int]) -> str:
        self._parts.prompts.check_tokens(tokens)
        return self._parts.model.vocabulary.text(tokens, special=True)

    def _understand(self, message: Generate) -> RunningRequest:
        """Render and tokenize a prompt, and set up its sampler."""
        if message.variant is not None:
            self._variants.check(message.variant)
        prompt = self._read(message.prompt)
        self._check_length(len(prompt.tokens), may_be_full=message.max_tokens == 0)
        vocabulary = self._parts.model.vocabulary
        sampler = Sampler(self._parts.sampling(message.sampling, prompt), vocabulary)
        self._n_arrived += 1
        request = RunningRequest(message, prompt.tokens, self._n_arrived, vocabulary, sampler, self._n_ctx)
        self._send(Accepted(id=message.id, prompt_tokens=len(prompt.tokens), calls_tools=prompt.calls_tools))
        if message.echo and message.n_logprobs is None and not message.generated:
            self._send(Scored(id=message.id, text=request.prompt_text()))
        return request

    def _read(self, prompt: str | list[int] | Chat) -> Prompt:
        """Read a prompt; one that is the same as the last is not read again: ``n`` choices of it come one by one.

        Of one that is too long only the number of its tokens is kept.
        """
        if self._last_read is None or self._last_read[0] != prompt:
            made = self._parts.prompts.make(prompt, self._n_ctx)
            self._last_read = prompt, made if len(made.tokens) <= self._n_ctx else len(made.tokens)
        last = self._last_read[1]
        if isinstance(last, int):
            raise too_long(self._n_ctx, f"{last}")
        return last

    @property
    def _n_ctx(self) -> int:
        return min(self._parts.settings.n_ctx, self._parts.n_cells)

    def _check_length(self, n_prompt: int, *, may_be_full: bool) -> None:
        if n_prompt > self._n_ctx - (0 if may_be_full else 1):
            raise too_long(self._n_ctx, f"{n_prompt}")

    def status(self) -> Status:
        """The figures of now."""
        scheduler, began = self._scheduler, self._busy_since
        counters = scheduler.counters
        return Status(
            variant=self._variants.name,
            step_seconds_now=time.monotonic() - began if began else 0.0,
            n_running=scheduler.n_running,
            n_waiting=scheduler.n_waiting,
            n_parked=scheduler.n_parked,
            cells_used=self._cache.cells_used,
            n_steps=counters.n_steps,
            n_prompt_tokens=counters.n_prompt_tokens,
            n_cached_tokens=counters.n_cached_tokens,
            n_generated_tokens=counters.n_generated_tokens,
            n_switches=self._variants.n_switches,
            switch_seconds=self._variants.switch_seconds,
            flip_seconds=self._variants.flip_seconds,
            mapped_bytes=self._parts.live.memory.mapped_bytes,
            private_bytes=private_bytes(),
            warm=list(self._parts.live.warm),
        )

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``Stop`` arrives."""
        while True:
            self._has_news.clear()
            self._busy_since = time.monotonic()
            self._take_arrivals()
            if self._is_stopping:
                return
            self._variants.advance()
            has_embedded = self._embed_some()
            has_stepped = self._scheduler.turn()
            self._parts.live.is_computing = self._scheduler.n_running > 0
            if not has_stepped and not has_embedded and not self._recompute():
                self._busy_since = 0.0
                self._has_news.wait(None if self._scheduler.is_idle else DEADLINE_CHECK_SECONDS)

    def _take_arrivals(self) -> None:
        while self._arrivals:
            arrival = self._arrivals.popleft()
            match arrival:
                case RunningRequest():
                    self._scheduler.add(arrival)
                case Cancel():
                    self._scheduler.cancel(arrival.id)
                    self._embeddings.cancel(arrival.id)
                case Switch() | Prepare():
                    self._variants.ask(arrival)
                case SaveCache():
                    self._save_cache(arrival)
                case EmbedJob():
                    self._embeddings.add(arrival)
                case Stop():
                    self._is_stopping = True

    def _save_cache(self, message: SaveCache) -> None:
        start = time.monotonic()
        try:
            n_bytes = self._cache.save(Path(message.folder))
        except LamellaError as error:
            self._send(refusal(message.id, error))
        else:
            n_cells, seconds = self._cache.cells_used, time.monotonic() - start
            self._send(CacheSaved(id=message.id, n_cells=n_cells, n_bytes=n_bytes, seconds=seconds))

    def _embed_some(self) -> bool:
        """One pass for embeddings, by the variant that runs; whether there was one to make."""
        if not self._embeddings:
            return False
        self._variants.point_at(self._variants.default, reads_prompt=True)
        self._embeddings.advance()
        return True

    def _after_switch(self, message: Switch) -> None:
        self._recomputes = message.cache == "recompute"
        if self._recomputes:
            self._cache.shelf.clear()

    def _recompute(self) -> bool:
        """With nothing else to do, bring kept beginnings to the variant that runs; whether something was done."""
        if self._recomputes and self._scheduler.is_idle:
            self._recomputes = self._scheduler.recompute_some()
            return True
        return False


def _fills(settings: EngineSettings) -> bool:
    """Whether steps may be filled up: where this machine's processor computes, and rows depend on rows beside them."""
    return not (settings.device or settings.layers or settings.rpc or settings.is_reproducible)
