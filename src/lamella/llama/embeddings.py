"""Embeddings of texts: a context of its own over the same weights, which pools the states of a text's tokens."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import library
from lamella.llama.batch import Batch, BatchPart
from lamella.llama.context import ContextOptions
from lamella.llama.model import Model

POOLINGS = {"auto": -1, "mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type
MOST_TOGETHER = 16
"""Texts in one pass."""


class Embedder(Closing):
    """Reads texts and pools them; one thread at a time."""

    def __init__(self, model: Model, pooling: str, n_ctx: int, n_threads: int = 0) -> None:
        """Allocate a context.

        Args:
            pooling: ``mean``, ``cls``, ``last``, or ``auto`` for what the model file says.
            n_ctx: most tokens of one text.

        Raises:
            InvalidRequest: ``auto``, and the model file says nothing.
            EngineFailed: llama.cpp cannot allocate it.
        """
        if pooling not in POOLINGS or (pooling == "auto" and not model.has_pooling):
            raise InvalidRequest("this model has no embeddings; start with pooling mean, cls or last to make some")
        self._llama = library.load().llama
        self._n_ctx, self._n_embd = n_ctx, int(self._llama.llama_model_n_embd(model.address))
        options = ContextOptions(
            n_ctx=n_ctx, n_sequences=MOST_TOGETHER, n_cells=n_ctx, n_batch=n_ctx, n_threads=n_threads
        )
        params = options.parameters()
        params.embeddings, params.pooling_type = True, POOLINGS[pooling]
        self._address = self._llama.llama_init_from_model(model.address, params)
        if not self._address:
            raise EngineFailed(f"llama.cpp cannot create a context of {n_ctx} tokens for embeddings")
        self._batch = Batch(n_ctx)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One vector of length 1 for each text: shape (texts, width of the model).

        Args:
            texts: token ids.

        Raises:
            InvalidRequest: a text is empty or longer than the context.
            EngineFailed: the computation failed, or the embedder was closed.
        """
        for text in texts:
            if not 0 < len(text) <= self._n_ctx:
                raise InvalidRequest(f"an input has {len(text)} tokens; it must be 1 to {self._n_ctx}")
        vectors = [v for group in self._groups(texts) for v in self._read(group)]
        found = np.array(vectors, np.float32).reshape(len(texts), self._n_embd)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Texts that fit into one pass together, in order."""
        group: list[Sequence[int]] = []
        for text in texts:
            if group and (len(group) == MOST_TOGETHER or sum(map(len, group)) + len(text) > self._n_ctx):
                yield group
                group = []
            group.append(text)
        if group:
            yield group

    def _read(self, group: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        if not self._address:
            raise EngineFailed("this embedder was closed")
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._address), True)
        self._batch.fill([BatchPart(i, 0, text, len(text)) for i, text in enumerate(group)])
        if self._llama.llama_decode(self._address, self._batch.struct) != 0:
            raise EngineFailed("llama.cpp cannot compute embeddings of these texts")
        for i in range(len(group)):
            pointer = self._llama.llama_get_embeddings_seq(self._address, i)
            if not pointer:
                raise EngineFailed("llama.cpp gave no embedding")
            yield np.ctypeslib.as_array(ct.cast(pointer, ct.POINTER(ct.c_float)), (self._n_embd,)).copy()

    def close(self) -> None:
        """Free the context; later calls do nothing."""
        if self._address:
            address, self._address = self._address, None
            self._llama.llama_free(address)
