"""The model under evaluation: loaded once, at one variant at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from lamella.core.artifacts import Variant
from lamella.evaluating.requests import Request
from lamella.llama import gguf
from lamella.llama.handles import Context, ContextOptions, Model, Vocabulary
from lamella.llama.logits import Column, Logits, log_normalizers, token_losses
from lamella.run.prefix import shared_prefix
from lamella.run.variants import LiveVariants
from lamella.store.store import Store


class Subject:
    """A model whose variants take turns.

    All weights are read from the mapped shards: no copies, and the same figures whatever this machine multiplies
    fastest.  Every variant stays open, so that taking turns costs a millisecond each.

    Attributes:
        model: the loaded model.
    """

    def __init__(self, store: Store, variants: Sequence[Variant]) -> None:
        """Load the first variant.

        Args:
            variants: all that ``use`` will be asked for.

        Raises:
            ShardDamaged: a shard is missing.
            EngineFailed: llama.cpp cannot load it.
        """
        with store.shared_lock(), contextlib.ExitStack() as on_failure:
            paths = store.shard_paths(variants[0])
            tensors = {n: t.spec for path in paths for n, t in gguf.read_tensors(path).items()}
            self.model = Model.load(paths)
            on_failure.callback(self.model.close)
            self._live = LiveVariants(store, self.model, tensors, {}, n_warm=len(variants), check=False)
            on_failure.pop_all()
        self._context: Context | None = None
        self._cached: tuple[int, ...] = ()
        self._name = ""

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    def make_room(self, options: ContextOptions) -> None:
        """Allocate the context; once, before anything is computed.

        Raises:
            EngineFailed: llama.cpp cannot allocate it.
        """
        assert self._context is None
        self._context = Context(self.model, options)

    def use(self, variant: str) -> None:
        """Compute with this variant from now on; nothing that another one computed is kept.

        Raises:
            UnknownVariant, ShardDamaged: it cannot be used.
        """
        if variant == self._name:
            return
        self._live.switch_to(self._live.prepare(variant).result())
        self._name = variant
        self._drop_cache_after(0)

    def window_logits(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        """Logits at the last ``n_outputs`` tokens of a text read from nothing; a view that the next call overwrites."""
        self._drop_cache_after(0)
        self._working.decode(tokens, 0, n_outputs=n_outputs)
        self._cached = tuple(tokens)
        return self._working.last_logits(n_outputs)

    def losses(self, request: Request) -> Column:
        """``-log p`` of each token of the continuation.

        What the request shares with the previous one (a question with other choices, a paragraph with another question)
        is taken from the KV cache.
        """
        tokens, n_outputs = request.fed, len(request.continuation)
        n_kept = self._drop_cache_after(min(shared_prefix(self._cached, tokens), len(request.context) - 1))
        self._working.decode(tokens[n_kept:], n_kept, n_outputs=n_outputs)
        self._cached = tokens
        logits = self._working.last_logits(n_outputs)
        return token_losses(logits, log_normalizers(logits), np.array(request.continuation))

    def close(self) -> None:
        """Free everything; later calls do nothing."""
        if self._context is not None:
            self._context.close()
        self.model.close()
        self._live.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _working(self) -> Context:
        assert self._context is not None  # make_room comes first
        return self._context

    def _drop_cache_after(self, n_tokens: int) -> int:
        """Keep the first tokens, or what the model can keep of them; returns how many."""
        n_kept = self._context.keep(n_tokens) if self._context is not None else 0
        self._cached = self._cached[:n_kept]
        return n_kept
