"""Texts to embed, one pass of the model after another between the steps of the streams that run.

A request for embeddings may hold thousands of texts; done in one go, every stream would stand still meanwhile, and
nobody could end it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamella.batching.messages import Embedded, EngineMessage
from lamella.batching.refusals import refusal
from lamella.core.errors import LamellaError
from lamella.llama import log
from lamella.llama.embeddings import Embedder, Pooling
from lamella.llama.memory import parse_log
from lamella.llama.model import Model


@dataclass(slots=True)
class EmbedJob:
    """One request for embeddings.

    Attributes:
        inputs: token ids of each text.
        vectors: of those that are done, in order.
        passes: what is left of the work; None before it has begun.
    """

    id: int
    inputs: Sequence[Sequence[int]]
    vectors: list[list[float]] = field(default_factory=list)
    passes: Iterator[NDArray[np.float32]] | None = None

    def answer(self) -> Embedded:
        """When all is done."""
        return Embedded(id=self.id, vectors=self.vectors, prompt_tokens=sum(map(len, self.inputs)))


class EmbedJobs:
    """The requests that wait, first come, first served.  Belongs to the loop's thread."""

    def __init__(self, open_embedder: Callable[[], Embedder], send: Callable[[EngineMessage], None]) -> None:
        """Have no job.

        Args:
            open_embedder: called for each job; raises ``LamellaError`` where the model has no embeddings.
        """
        self._open_embedder, self._send = open_embedder, send
        self._jobs: deque[EmbedJob] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: EmbedJob) -> None:
        """One more."""
        self._jobs.append(job)

    def cancel(self, number: int) -> None:
        """Nobody waits for this one any more; nothing happens where there is none of that number."""
        self._jobs = deque(job for job in self._jobs if job.id != number)

    def advance(self) -> None:
        """One pass of the model, and the answer if it was the last."""
        job = self._jobs[0]
        if job.passes is None and not self._begin(job):
            return
        assert job.passes is not None
        try:
            job.vectors += (vector for vectors in itertools.islice(job.passes, 1) for vector in vectors.tolist())
        except LamellaError as error:
            self._end(refusal(job.id, error))
            return
        if len(job.vectors) == len(job.inputs):
            self._end(job.answer())

    def _begin(self, job: EmbedJob) -> bool:
        try:
            job.passes = self._open_embedder().passes(job.inputs)
        except LamellaError as error:
            self._end(refusal(job.id, error, otherwise="no_embeddings"))
            return False
        return True

    def _end(self, answer: EngineMessage) -> None:
        self._jobs.popleft()
        self._send(answer)


def embedder_bytes(paths: Sequence[Path], pooling: Pooling, n_ctx: int) -> int:
    """Memory of an ``Embedder`` of a model, by a dry run: it is loaded without weights, and nothing is allocated.

    The logits of all tokens of a text are not in llama.cpp's plan: they get their memory with the first pass.

    Raises:
        InvalidRequest: the model has no embeddings.
        EngineFailed: llama.cpp does not say.
    """
    with log.listening() as lines:
        model = Model.load(paths, without_weights=True)
        with model, Embedder(model, pooling, n_ctx):
            logits_bytes = np.dtype(np.float32).itemsize * n_ctx * model.vocabulary.n_tokens
    return parse_log(lines).total_bytes + logits_bytes
