"""A model that generates text at one variant and changes to another between two tokens.

    with Engine.open(Store.open(Path("store")), "large") as engine:
        engine.prepare("small")                      # reads pages in, in the background
        for token in engine.generate("Once upon a time"):
            print(token.text, end="")
            if memory_is_short():
                engine.switch("small")               # about a millisecond; the KV cache stays

An engine belongs to one thread, except that ``prepare`` and ``switch`` may be called from any: a switch waits for the
end of the token that is being computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lamella.core.artifacts import Variant
from lamella.core.closing import Closing
from lamella.core.cores import usable_cores
from lamella.core.errors import NO_CEILING_ON_DEVICES, EngineFailed, InvalidRequest, StoreError
from lamella.llama import chat_template, devices
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import Sampler, SamplingOptions
from lamella.llama.weights import WeightState
from lamella.run.chat import Message, as_template_messages
from lamella.run.generation import FinishReason, Generation, Progress, Token
from lamella.run.kernel_table import KernelTable, layout_choices
from lamella.run.layouts import MAPPED, LayoutPolicy, check_policy
from lamella.run.loading import Loaded, load
from lamella.run.prefix import shared_prefix
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant, SwitchReport
from lamella.run.starting import plan_start
from lamella.run.text import TextStream
from lamella.store.store import Store

LONG_PROMPT_TOKENS = 32
"""Prompts at least this long are read with the layouts that read prompts fastest."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        context: its size and threads.
        layout: ``mapped`` (zero-copy), ``repacked``, or ``auto``: whichever was measured faster, by type and phase.
        n_warm: variants whose shards stay open, the running one included; the least recently used goes first.
        check: verify the hash of every shard before it is used.
        memory_bytes: ceiling for mapped shards and the private memory of the process, also during a switch; 0 for none.
        device: ggml device that computes and holds weights and KV cache, as ``lamella devices`` names it; None for the
            CPU.  Layouts and the ceiling are for the CPU.
    """

    context: ContextOptions = field(default_factory=ContextOptions)
    layout: LayoutPolicy = "auto"
    n_warm: int = 2
    check: bool = False
    memory_bytes: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check_policy(self.layout)
        if self.n_warm < 1:
            raise InvalidRequest(f"n_warm must be at least 1, not {self.n_warm}")
        if self.device and self.memory_bytes:
            raise InvalidRequest(NO_CEILING_ON_DEVICES)


class Engine(Closing):
    """One model in memory, at one variant at a time.

    Attributes:
        store: where the variants are.
        options: as given.
    """

    def __init__(self, store: Store, options: EngineOptions, loaded: Loaded) -> None:
        """Use ``Engine.open``."""
        self.store, self.options = store, options
        self._loaded, self._model, self._context, self._live = loaded, loaded.model, loaded.context, loaded.live
        self._between_tokens = threading.RLock()
        self._cached_tokens: list[int] = []
        self._generating: Progress | None = None
        self._is_open = True

    @classmethod
    def open(
        cls,
        store: Store,
        variant: str | None = None,
        options: EngineOptions | None = None,
        kernels: KernelTable | None = None,
    ) -> Engine:
        """Load a variant and get ready to generate.

        Args:
            variant: its name; None takes the largest, under a memory ceiling the largest that fits.
            kernels: measured speeds of this machine; None measures what layout ``auto`` needs, for this engine only.

        Raises:
            UnknownVariant: no such variant.
            InvalidRequest: no such device.
            ShardDamaged: a shard is missing and cannot be got back, or with ``check`` does not match its name.
            EngineFailed: llama.cpp cannot load it.
            ExceedsCeiling: it does not fit; says what would.
        """
        options = options or EngineOptions()
        if variant is not None:
            store.variant(variant)  # an unknown one is refused before speeds are measured
        variants = by_size(store)
        kernels = kernels or KernelTable(None, options.context.n_threads or usable_cores())
        device = devices.besides_cpu(options.device)
        layouts = (MAPPED,) if device else layout_choices(options.layout, kernels, variants)
        start = plan_start(store, variants, variant, options.context, layouts, options.memory_bytes)
        loaded = load(
            store,
            start.variant,
            start.layouts,
            lambda _: options.context,
            n_warm=options.n_warm,
            check=options.check,
            ceiling=start.ceiling,
            device=device,
        )
        return cls(store, options, loaded)

    @property
    def variant(self) -> str:
        """Name of the variant that computes the next token; during a change shard by shard that of the one before."""
        return self._live.name

    @property
    def variants(self) -> tuple[str, ...]:
        """What can be switched to."""
        return tuple(v.name for v in self.store.readable_variants()[0])

    @property
    def repacked_bytes(self) -> int:
        """Private memory of repacked weights; everything else is shared page cache."""
        return self._live.memory.repacked_bytes

    @property
    def device_bytes(self) -> int:
        """Memory of the device that weights take; 0 on the CPU."""
        return self._live.memory.device_bytes

    def prepare(self, variant: str) -> Future[Ready]:
        """Get a variant into memory in the background, so that a later ``switch`` need not wait.

        Raises:
            UnknownVariant: at once.  What else fails (a damaged shard) is raised by ``switch`` and by the future.
            EngineFailed: the engine was closed.
        """
        return self._live.prepare(variant)

    def switch(self, variant: str) -> SwitchReport:
        """Run at another variant from the next token on; the KV cache stays.

        Waits until the variant is prepared (``prepare`` it earlier to make this a millisecond) and for the token, or
        the prompt, that another thread is computing.

        Under a memory ceiling that does not hold both variants it is done shard by shard, between tokens.

        Raises:
            UnknownVariant, ShardDamaged, ExceedsCeiling: nothing has changed; or shard by shard, the change stopped
                on its way, and the model runs on at a mixture of both.
            EngineFailed: the engine was closed.
        """
        while True:
            try:
                ready = self.prepare(variant).result()
            except CancelledError:
                raise EngineFailed("the engine was closed") from None
            if isinstance(ready, StagedVariant):
                report = self._switch_stepwise(ready)
            else:
                with self._between_tokens:
                    self._check_open()
                    report = self._live.switch_to(ready)
            if report is not None:
                return report

    def _switch_stepwise(self, staged: StagedVariant) -> SwitchReport | None:
        """Exchange shard after shard, each between two tokens; None where it has to be prepared anew."""
        with self._between_tokens:
            self._check_open()
            change = self._live.begin(staged)
        if change is None:
            return None
        try:
            while not change.is_over:
                change.open_next()
                with self._between_tokens:
                    change.exchange_next()
        finally:
            with self._between_tokens:
                report = self._live.end(change)
        return report

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 512,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Continue a prompt; tokens come as they are asked for.

        What the prompt shares with the previous generation is taken from the KV cache.  The first token of a generation
        ends an earlier one that was not finished.

        Args:
            prompt: text, or token ids as they are.
            stop: the text ends before any of these.

        Raises:
            InvalidRequest: the prompt is empty or leaves no room for a token in the context.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        n_ctx = self.options.context.n_ctx
        if not tokens:
            raise InvalidRequest("the prompt is empty")
        if len(tokens) >= n_ctx:
            raise InvalidRequest(f"the prompt has {len(tokens)} tokens, the context holds {n_ctx}")
        if max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}")
        progress = Progress(n_prompt=len(tokens))
        return Generation(self._run(tokens, progress, sampling or SamplingOptions(), stop, max_tokens), progress)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 512,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Answer a chat by the model's own template.

        Raises:
            EngineFailed: the model has no template, or it refuses the messages.
            InvalidRequest: as ``generate``.
        """
        prompt = chat_template.render(self._model, as_template_messages(messages))
        tokens = self._model.vocabulary.tokenize(prompt, add_special=False)  # the template writes BOS where it is due
        return self.generate(tokens, max_tokens=max_tokens, sampling=sampling, stop=stop)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that is to go on, with what the model wants at the start."""
        return self._model.vocabulary.prompt(text)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the last of ``tokens``, computed from nothing: shape (vocabulary,).

        Ends a generation that was not finished; the KV cache holds ``tokens`` afterwards.

        Raises:
            InvalidRequest: there are none, and so no last one.
        """
        if not tokens:
            raise InvalidRequest("logits come after a token, and none was given")
        with self._between_tokens:
            self._check_open()
            self._generating = None
            self._context.forget()
            self._cached_tokens.clear()
            self._decode(tokens, self._running.token)
            return self._context.logits().copy()

    def close(self) -> None:
        """Free everything; later calls do nothing.  A generation that was not finished cannot go on."""
        with self._between_tokens:
            self._is_open = False
            self._loaded.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineFailed("the engine was closed")

    @property
    def _running(self) -> PreparedVariant:
        assert self._live.current is not None  # open() switches to the first variant
        return self._live.current

    def _run(
        self,
        prompt: Sequence[int],
        progress: Progress,
        sampling: SamplingOptions,
        stop: Sequence[str],
        max_tokens: int,
    ) -> Iterator[Token]:
        vocabulary, stream = self._model.vocabulary, TextStream(stop)
        with Sampler(sampling, vocabulary) as sampler:
            start = time.perf_counter()
            self._generating = progress
            progress.n_reused = self._read_prompt(prompt)
            progress.prompt_seconds = time.perf_counter() - start
            token = -1
            while progress.finish_reason is None:
                start = time.perf_counter()
                if self._generating is not progress:
                    raise InvalidRequest("another generation was started; this one cannot go on")
                token, variant = self._next_token(token, sampler)
                seconds = time.perf_counter() - start
                if vocabulary.ends_generation(token):
                    progress.finish_reason = "stop"
                    break
                if progress.n_generated:
                    progress.token_seconds += seconds
                else:
                    progress.prompt_seconds += seconds
                progress.n_generated += 1
                text = stream.feed(vocabulary.piece(token))
                progress.finish_reason = self._finish_reason(stream, progress, max_tokens)
                yield Token(token, text, variant, seconds)
        if rest := stream.finish():
            yield Token(-1, rest, self.variant, 0.0)

    def _next_token(self, last: int, sampler: Sampler) -> tuple[int, str]:
        """Run the last token through the model (none yet: the prompt's logits are there) and draw the next."""
        with self._between_tokens:
            self._check_open()
            if last >= 0:
                self._decode([last], self._running.token)
            return sampler.sample(self._context), self.variant

    def _finish_reason(self, stream: TextStream, progress: Progress, max_tokens: int) -> FinishReason | None:
        if stream.stopped:
            return "stop"
        is_full = len(self._cached_tokens) >= self.options.context.n_ctx
        return "length" if progress.n_generated >= max_tokens or is_full else None

    def _read_prompt(self, prompt: Sequence[int]) -> int:
        """Run the part of the prompt that the KV cache does not hold; returns how many tokens it held."""
        with self._between_tokens:
            self._check_open()
            n_reused = self._drop_cache_after(min(shared_prefix(self._cached_tokens, prompt), len(prompt) - 1))
            rest = prompt[n_reused:]
            is_long = len(rest) >= LONG_PROMPT_TOKENS
            self._decode(rest, self._running.prompt if is_long else self._running.token)
            self._live.use(self._running.token)
        return n_reused

    def _decode(self, tokens: Sequence[int], states: Mapping[str, WeightState]) -> None:
        self._live.use(states)
        start = len(self._cached_tokens)
        self._live.is_computing = True
        try:
            self._context.decode(tokens, start)
        except BaseException:
            self._drop_cache_after(start)
            raise
        finally:
            self._live.is_computing = False
        self._cached_tokens.extend(tokens)

    def _drop_cache_after(self, n_tokens: int) -> int:
        """Keep the first tokens, or what the model can keep of them; returns how many."""
        n_kept = self._context.keep(n_tokens)
        del self._cached_tokens[n_kept:]
        return n_kept


def by_size(store: Store) -> list[Variant]:
    """The readable variants of a store, the one with the most bytes first.

    Raises:
        StoreError: the store has none.
    """
    variants, _ = store.readable_variants()
    if not variants:
        raise StoreError(f"{store.path} holds no variant yet; build one with: lamella build MODEL {store.path}")
    return sorted(variants, key=lambda v: (-v.n_bytes, v.name))


def largest_variant(store: Store) -> Variant:
    """The variant with the most bytes.

    Raises:
        StoreError: the store has none.
    """
    return by_size(store)[0]
