"""Embeddings: one vector for a text, pooled from the states of its tokens.

with Embedder(model, "auto", n_ctx=512) as embedder:
    vectors = embedder.embed([model.vocabulary.tokenize("a text"), model.vocabulary.tokenize("another")])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.cores import usable_cores
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import library, log
from lamella.llama.batch import Batch, BatchPart
from lamella.llama.handle import Handle
from lamella.llama.model import Model

Pooling = Literal["auto", "mean", "cls", "last"]
MOST_TOGETHER = 16
PASS_TOKENS = 512
"""Texts go through together up to so many tokens: a pass cannot be interrupted."""

_POOLINGS = {"auto": -1, "mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type


class Embedder(Handle):
    """A context of its own that makes embeddings.

    llama.cpp pools what one pass holds, so a text goes through in one; for a language model it computes the logits of
    all its tokens too, which takes ``8 * n_ctx * vocabulary`` bytes.
    """

    def __init__(self, model: Model, pooling: Pooling, n_ctx: int = 512, n_threads: int = 0) -> None:
        """Allocate the context.

        Args:
            pooling: how a text's vector is made of its tokens': their mean, that of the first (``cls``) or of the last
                one; ``auto`` for what the model file says.
            n_ctx: most tokens of one text.
            n_threads: 0 for the cores this process may use.

        Raises:
            InvalidRequest: the pooling is unknown, or the model file says none.
            EngineFailed: llama.cpp cannot allocate it.
        """
        if pooling not in _POOLINGS:
            raise InvalidRequest(f"'{pooling}' is no pooling; known: {', '.join(_POOLINGS)}")
        if pooling == "auto" and not model.has_pooling:
            raise InvalidRequest("this model has none; start with pooling mean, cls or last")
        if n_ctx < 1:
            raise InvalidRequest(f"n_ctx must be at least 1, not {n_ctx}")
        llama = library.load().llama
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = max(n_ctx, MOST_TOGETHER)
        params.n_seq_max = MOST_TOGETHER
        params.n_threads = params.n_threads_batch = n_threads or usable_cores()
        params.embeddings = True
        params.pooling_type = _POOLINGS[pooling]
        params.kv_unified = params.no_perf = True
        log.forget_complaints()
        address = llama.llama_init_from_model(model.address, params)
        if not address:
            raise EngineFailed(f"llama.cpp cannot create a context for embeddings: {log.complaints()}")
        super().__init__(address, llama.llama_free)
        self._llama = llama
        self._model = model
        self._n_ctx = n_ctx
        self._batch = Batch(n_ctx)

    def embed(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One vector of length 1 for each input: shape (inputs, ``Model.n_embd``).

        Raises:
            InvalidRequest: an input is empty, too long, or has a token that the vocabulary has not.
            EngineFailed: the computation failed.
        """
        return np.concatenate([np.empty((0, self._model.n_embd), np.float32), *self.passes(inputs)])

    def passes(self, inputs: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        """The same, of as many inputs at a time as go through the model together.

        Raises:
            InvalidRequest, EngineFailed: as ``embed``; the first before anything is computed.
        """
        for i, tokens in enumerate(inputs):
            self._check(i, tokens)
        for first, end in _together([len(tokens) for tokens in inputs], min(self._n_ctx, PASS_TOKENS)):
            vectors = np.empty((end - first, self._model.n_embd), np.float32)
            self._embed_together(inputs[first:end], vectors)
            yield vectors

    def _check(self, i: int, tokens: Sequence[int]) -> None:
        n_vocabulary = self._model.vocabulary.n_tokens
        if not 0 < len(tokens) <= self._n_ctx:
            raise InvalidRequest(f"input {i} has {len(tokens)} tokens; 1 to {self._n_ctx} are taken")
        if not 0 <= min(tokens) <= max(tokens) < n_vocabulary:
            raise InvalidRequest(f"input {i} has tokens outside the vocabulary of {n_vocabulary}")

    def _embed_together(self, inputs: Sequence[Sequence[int]], vectors: NDArray[np.float32]) -> None:
        self._batch.fill([BatchPart(i, 0, tokens, len(tokens)) for i, tokens in enumerate(inputs)])
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self.address), False)
        log.forget_complaints()
        code = self._llama.llama_decode(self.address, self._batch.struct)
        if code != 0:
            raise EngineFailed(f"llama.cpp could not compute embeddings, code {code}: {log.complaints()}")
        for i in range(len(inputs)):
            pointer = self._llama.llama_get_embeddings_seq(self.address, i)
            if not pointer:
                raise EngineFailed(f"llama.cpp gave no embedding of input {i}")
            vector = np.ctypeslib.as_array(pointer, (vectors.shape[1],))
            vectors[i] = vector / max(float(np.linalg.norm(vector)), np.finfo(np.float32).tiny)


def _together(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs of inputs, from one number to before another, that fit into one pass."""
    first = n_tokens = 0
    for i, length in enumerate(lengths):
        if i > first and (n_tokens + length > most or i - first == MOST_TOGETHER):
            yield first, i
            first, n_tokens = i, 0
        n_tokens += length
    if first < len(lengths):
        yield first, len(lengths)
