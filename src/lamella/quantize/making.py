"""Shards on their way from a model file into a store, on all cores.

    made = make_shards(source, Site(store, lease, claims), jobs, n_threads=4, watch=Watch(len(jobs), jobs))

Three stages work at once: threads convert chunks of rows, the caller's thread hashes and writes them in order, and one
thread flushes finished shards to the disk.  Chunks of the next tensors are converted while earlier ones are written, so
small tensors keep all cores busy too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from lamella.core.artifacts import ShardRef
from lamella.core.errors import INTERRUPTED_EXIT_CODE, LamellaError
from lamella.llama.gguf import ModelFile, padding
from lamella.quantize.recipe import ShardJob
from lamella.quantize.shard import shard_header
from lamella.quantize.tensor import Chunk, SourceFiles, chunks_of, convert_chunk, in_order, prepare
from lamella.store.claims import Claims
from lamella.store.leases import Lease, ShardWriter
from lamella.store.store import Store


class BuildStopped(LamellaError):
    """``should_stop`` said so.  What was finished is kept."""

    exit_code: ClassVar[int] = INTERRUPTED_EXIT_CODE


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build stands.

    Attributes:
        label: shard being written.
        n_done, n_shards: shards of the variant, those found in the store counted as done.
        weights_done, weights_total: of the shards that must be made.
    """

    label: str
    n_done: int
    n_shards: int
    weights_done: int
    weights_total: int


OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True, slots=True)
class Site:
    """Where shards go, what keeps them there, and which of them this builder makes."""

    store: Store
    lease: Lease
    claims: Claims


class Watch:
    """Tells how far the build is, and stops it when asked."""

    def __init__(
        self,
        n_shards: int,
        missing: Sequence[ShardJob],
        on_progress: OnProgress | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._n_shards, self._n_done = n_shards, n_shards - len(missing)
        self._weights_done, self._weights_total = 0, sum(job.n_weights for job in missing)
        self._on_progress, self._should_stop = on_progress, should_stop

    def check(self) -> None:
        if self._should_stop and self._should_stop():
            raise BuildStopped(f"stopped with {self._n_done} of {self._n_shards} shards in the store")

    def wrote(self, label: str, n_weights: int) -> None:
        self._weights_done += n_weights
        self._report(label)

    def waits_for(self, job: ShardJob) -> None:
        self.check()
        self._report(f"{job.group.label} (another build is making it)")

    def found(self, job: ShardJob) -> None:
        """Another builder made it."""
        self._weights_done += job.n_weights
        self.finished(job.group.label)

    def finished(self, label: str) -> None:
        self._n_done += 1
        self._report(label)

    def _report(self, label: str) -> None:
        if self._on_progress:
            self._on_progress(
                BuildProgress(label, self._n_done, self._n_shards, self._weights_done, self._weights_total)
            )


def make_shards(
    source: ModelFile,
    site: Site,
    jobs: Sequence[ShardJob],
    n_threads: int,
    watch: Watch,
    expected: Mapping[int, str] | None = None,
) -> dict[int, ShardRef]:
    """Make the shards; returns them by number.

    Leaving early, by whatever exception, cancels chunks that have not begun and still flushes finished shards.

    Args:
        expected: ids that shards must have, by number.
    """
    prepare(conversion for job in jobs for conversion in job.conversions)
    flushed: dict[int, Future[ShardRef]] = {}
    expected = expected or {}
    with SourceFiles() as files, ThreadPoolExecutor(n_threads) as pool, ThreadPoolExecutor(1) as flusher:
        converted = in_order(
            pool,
            lambda chunk: (chunk, convert_chunk(chunk, files)),
            (chunk for job in jobs for conversion in job.conversions for chunk in chunks_of(conversion, n_threads)),
            in_flight=2 * n_threads + 2,
        )
        with contextlib.closing(converted):
            for job in jobs:
                writer = _write_shard(source, site.lease, job, converted, watch)
                flushed[job.group.number] = flusher.submit(
                    _flush_shard, site, job, writer, expected.get(job.group.number)
                )
                watch.finished(job.group.label)
                _raise_early(flushed.values())
        return {number: future.result() for number, future in flushed.items()}


def _write_shard(
    source: ModelFile, lease: Lease, job: ShardJob, converted: Iterator[tuple[Chunk, memoryview]], watch: Watch
) -> ShardWriter:
    """Write a shard's bytes; it remains to be flushed.  On any failure nothing of it is left."""
    header = shard_header(source, job.group, [conversion.target.name for conversion in job.conversions])
    writer = lease.new_shard(job.group.label, len(header) + job.n_bytes)
    try:
        writer.write(header)
        for conversion in job.conversions:
            n_left = conversion.source.spec.n_weights
            while n_left:
                watch.check()
                chunk, data = next(converted)
                writer.write(data)
                n_left -= chunk.n_weights
                watch.wrote(job.group.label, chunk.n_weights)
            writer.write(bytes(padding(conversion.n_bytes)))
    except BaseException:
        writer.close()
        raise
    return writer


def _flush_shard(site: Site, job: ShardJob, writer: ShardWriter, expected_id: str | None) -> ShardRef:
    with contextlib.closing(writer):
        ref = writer.commit(expected_id)
    site.store.remember(job.recipe_id, job.recipe, ref)
    site.claims.release(job.recipe_id)
    return ref


def _raise_early(futures: Iterable[Future[ShardRef]]) -> None:
    """Do not go on converting when the disk has refused a shard."""
    for future in futures:
        if future.done():
            future.result()
