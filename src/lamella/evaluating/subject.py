"""The model under evaluation: loaded once, at one variant at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lamella.core.artifacts import Variant
from lamella.core.closing import Closing
from lamella.core.cores import usable_cores
from lamella.core.errors import EngineFailed
from lamella.evaluating.requests import Request
from lamella.llama.context import Context, ContextOptions
from lamella.llama.logits import Column, Logits, Survey, survey, token_losses
from lamella.llama.vocabulary import Vocabulary
from lamella.run.loading import loading
from lamella.run.prefix import shared_prefix
from lamella.run.variants import LiveVariants
from lamella.store.store import Store

MOST_READ_TOGETHER = 2048  # tokens of one pass: the compute buffer grows with them
MOST_SCORED_TOGETHER = 512  # tokens of one pass with logits: 100 MB for 49,152 tokens of vocabulary


@dataclass(frozen=True, slots=True)
class Room:
    """What a context must hold.

    Attributes:
        n_ctx: tokens read one after another.
        n_batch: of which so many in one pass.
        n_outputs: of which so many with logits.
    """

    n_ctx: int
    n_batch: int
    n_outputs: int

    @classmethod
    def for_requests(cls, requests: Iterable[Request]) -> Self:
        """Enough for each of at least one request; long ones are read in several passes."""
        lengths = [(len(r.fed), len(r.continuation)) for r in requests]
        n_ctx = max(n for n, _ in lengths)
        return cls(n_ctx, min(n_ctx, MOST_READ_TOGETHER), min(max(n for _, n in lengths), MOST_SCORED_TOGETHER))

    def joined(self, other: Room) -> Room:
        """Enough for both."""
        return Room(
            max(self.n_ctx, other.n_ctx), max(self.n_batch, other.n_batch), max(self.n_outputs, other.n_outputs)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model thinks of a continuation.

    Attributes:
        losses: ``-log p`` of each of its tokens.
        is_greedy: each of them was the likeliest.
    """

    losses: Column
    is_greedy: bool


class Subject(Closing):
    """A model whose variants take turns.

    All weights are read from the mapped shards: no copies, and the same figures whatever this machine multiplies
    fastest.  Every variant stays open, so that taking turns costs a millisecond each.

    Attributes:
        model: the loaded model.
        n_threads: that compute.
    """

    def __init__(self, store: Store, variants: Sequence[Variant], *, check: bool = False) -> None:
        """Load the first variant.

        Args:
            variants: all that ``use`` will be asked for.
            check: verify the hash of every shard before it is used.

        Raises:
            ShardDamaged: a shard is missing, or with ``check`` does not match its name.
            EngineFailed: llama.cpp cannot load it.
        """
        with loading(store, variants[0].name, check=check) as opened:
            self.model = opened.model
            self._live = LiveVariants(store, self.model, opened.tensors, {}, n_warm=len(variants), check=check)
        self.n_threads = usable_cores()
        self._context: Context | None = None
        self._cached: tuple[int, ...] = ()
        self._name = ""

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    def make_room(self, room: Room, n_threads: int = 0) -> None:
        """Allocate the context, before anything is computed; an earlier one goes, with what it had computed.

        Args:
            n_threads: 0 for the cores that this process may use.

        Raises:
            EngineFailed: llama.cpp cannot allocate it.
        """
        if self._context is not None:
            self._context.close()
        self._context, self._cached, self.n_threads = None, (), n_threads or usable_cores()
        options = ContextOptions(n_ctx=room.n_ctx, n_batch=room.n_batch, n_outputs=room.n_outputs, n_threads=n_threads)
        self._context = Context(self.model, options)

    def use(self, variant: str) -> None:
        """Compute with this variant from now on; nothing that another one computed is kept.

        Raises:
            UnknownVariant, ShardDamaged: it cannot be used.
        """
        if variant == self._name:
            return
        self._live.change_to(variant)
        self._name = variant
        self._drop_cache_after(0)

    def window_logits(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        """Logits at the last ``n_outputs`` tokens of a text read from nothing; a view that the next call overwrites."""
        self._drop_cache_after(0)
        self._working.decode(tokens, 0, n_outputs=n_outputs)
        self._cached = tuple(tokens)
        return self._working.last_logits(n_outputs)

    def logits_across_switch(self, before: str, after: str, tokens: Sequence[int], n_outputs: int) -> Logits:
        """Logits at the last ``n_outputs`` tokens, computed by ``after`` on a KV cache of all tokens before them that
        ``before`` computed; a view that the next call overwrites.

        Raises:
            UnknownVariant, ShardDamaged: one of them cannot be used.
        """
        first = len(tokens) - n_outputs
        self.use(before)
        self._drop_cache_after(0)
        self._working.decode(tokens[:first], 0, n_outputs=0)
        if after != before:
            self._live.change_to(after)
        self._name, self._cached = "", ()  # what the cache holds is of two variants: for nobody else
        self._working.decode(tokens[first:], first, n_outputs=n_outputs)
        return self._working.last_logits(n_outputs)

    def survey(self, logits: Logits) -> Survey:
        """Look at logits on as many threads as compute them.

        Raises:
            EngineFailed: they are no numbers, of which figures would come out that look like any others.
        """
        found = survey(logits, self.n_threads)
        if not np.isfinite(found.normalizers).all():
            raise EngineFailed(f"variant {self._name or 'of two'} computes NaN or infinity: nothing can be said of it")
        return found

    def losses(self, request: Request) -> Column:
        """``-log p`` of each token of the continuation.

        What the request shares with the previous one (a question with other choices, a paragraph with another question)
        is taken from the KV cache.
        """
        return self.answer(request).losses

    def answer(self, request: Request) -> Answer:
        """The losses, and whether the continuation is what the model itself would have written."""
        losses, is_greedy = [], True
        for logits, targets in self._scored(request):
            seen = self.survey(logits)
            losses.append(token_losses(logits, seen.normalizers, targets))
            is_greedy = is_greedy and bool((seen.best == targets).all())
        return Answer(np.concatenate(losses), is_greedy)

    def _scored(self, request: Request) -> Iterator[tuple[Logits, NDArray[np.int64]]]:
        """Logits that score the continuation, and its tokens, in pieces that fit the context's passes."""
        tokens, first, context = request.fed, len(request.context) - 1, self._working
        targets = np.array(request.continuation)
        n_read = self._drop_cache_after(min(shared_prefix(self._cached, tokens), first))
        most = min(context.options.n_outputs, context.n_batch)
        if min(first + most, len(tokens)) - n_read > context.n_batch:
            context.decode(tokens[n_read:first], n_read, n_outputs=0)
            n_read = first
        for start in range(first, len(tokens), most):
            end = min(start + most, len(tokens))
            context.decode(tokens[n_read:end], n_read, n_outputs=end - start)
            self._cached, n_read = tokens[:end], end
            yield context.last_logits(end - start), targets[start - first : end - first]

    def close(self) -> None:
        """Free everything; later calls do nothing."""
        if self._context is not None:
            self._context.close()
        self.model.close()
        self._live.close()

    @property
    def _working(self) -> Context:
        assert self._context is not None  # make_room comes first
        return self._context

    def _drop_cache_after(self, n_tokens: int) -> int:
        """Keep the first tokens, or what the model can keep of them; returns how many."""
        n_kept = self._context.keep(n_tokens) if self._context is not None else 0
        self._cached = self._cached[:n_kept]
        return n_kept
