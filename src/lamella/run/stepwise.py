"""A change of variant shard by shard, for memory that does not hold both at once.

    change = live.begin(staged)
    while not change.is_over:
        change.open_next()                # any thread; the model may run meanwhile
        change.exchange_next()            # between two decodes
    report = live.end(change)

Each step opens one shard, points its weights there and closes the one it replaces.  In between the model runs at a
mixture of both variants, which is as good a model as either: any layer may have any precision.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from lamella.core.artifacts import ShardRef
from lamella.core.errors import EngineFailed
from lamella.core.model import TensorSpec
from lamella.llama.weights import WeightState
from lamella.run.ceiling import Exchange
from lamella.run.prepared import PreparedVariant, StagedVariant, SwitchReport
from lamella.run.shards import ShardPool, ShardStates


class StepwiseChange:
    """One change in progress.  Has the pool of shards for itself until it is over or given up.

    Attributes:
        staged: what it leads to.
        mixed: what runs now.
        replaced: what ran before and is closed in the end; None where others use it too.
        peak_bytes: the most memory that weights take during it.
        n_weights, n_steps: tensors that were pointed elsewhere, and in how many steps, so far.
        stall_seconds, longest_seconds: how long nothing could be computed, in all and in one step, so far.
        open_seconds: what opening shards beside the running ones took, so far.
    """

    def __init__(
        self,
        pool: ShardPool,
        tensors: Mapping[str, TensorSpec],
        staged: StagedVariant,
        mixed: PreparedVariant,
        exchanges: tuple[Exchange, ...],
        *,
        replaced: PreparedVariant | None,
        peak_bytes: int,
        kept: Collection[str],
        point: Callable[[PreparedVariant], int],
    ) -> None:
        """Use ``LiveVariants.begin``.

        Args:
            kept: ids of shards that others use, which stay open.
            point: makes the model run at a mixture; returns how many weights moved.
        """
        self.staged, self.mixed, self.replaced, self.peak_bytes = staged, mixed, replaced, peak_bytes
        self._pool, self._tensors, self._kept, self._point = pool, tensors, kept, point
        self._left = list(exchanges)
        self._paths = {s.id: path for s, path in zip(staged.variant.shards, staged.paths, strict=True)}
        self._opened: ShardStates | None = None
        self._lock = threading.Lock()  # whoever closes the pool waits for the shard that is being opened
        self._is_given_up = False
        self.n_weights = self.n_steps = 0
        self.stall_seconds = self.longest_seconds = self.open_seconds = 0.0

    @property
    def is_over(self) -> bool:
        """Whether every shard is the new variant's."""
        return not self._left

    def open_next(self) -> None:
        """Read the next shard in beside the one that it replaces, where memory holds both.

        Raises:
            LamellaError: the shard cannot be opened; the model runs on at the mixture.
        """
        with self._lock:
            self._check()
            if self._opened is None and not self._left[0].frees_first:
                start = time.perf_counter()
                self._opened = self._open(self._left[0].new)
                self.open_seconds += time.perf_counter() - start

    def exchange_next(self) -> None:
        """Run with the next shard, and close the one that it replaces.  Between two decodes.

        Raises:
            LamellaError: as ``open_next``.
        """
        with self._lock:
            self._check()
            exchange, start = self._left[0], time.perf_counter()
            if self._opened is None:
                if exchange.frees_first:
                    self._free(exchange.old)
                self._opened = self._open(exchange.new)
            self._run_with(self._opened, exchange)
            self._opened = None
            del self._left[0]
            if exchange.old.id not in self._kept:
                self._pool.close_shard(exchange.old.id)
            self._count(time.perf_counter() - start)

    def give_up(self) -> None:
        """Do nothing more; waits for the shard that is being opened."""
        with self._lock:
            self._is_given_up = True

    def report(self, before: str) -> SwitchReport:
        """What a change that is over did and cost."""
        return SwitchReport(
            before=before,
            after=self.staged.variant.name,
            n_weights=self.n_weights,
            n_shards=self.n_steps,
            switch_seconds=self.stall_seconds,
            prepare_seconds=self.staged.seconds + self.open_seconds,
            mapped_bytes=self._pool.mapped_bytes,
            repacked_bytes=self._pool.repacked_bytes,
            n_steps=self.n_steps,
            longest_seconds=self.longest_seconds,
            peak_bytes=self.peak_bytes,
        )

    def _check(self) -> None:
        if self._is_given_up:
            raise EngineFailed("the engine was closed")

    def _open(self, shard: ShardRef) -> ShardStates:
        return self._pool.open(shard.id, self._paths[shard.id], self._tensors)

    def _free(self, shard: ShardRef) -> None:
        """Give back a shard's memory; its weights point at its file, so that a failure from here on costs only time."""
        assert shard.id not in self._kept, "what a request holds is computed with"
        states = self._pool.mapped_states(shard.id)
        self._run_at({**self.mixed.prompt, **states}, {**self.mixed.token, **states})
        self._pool.empty(shard.id)

    def _run_with(self, opened: ShardStates, exchange: Exchange) -> None:
        shards = [exchange.new if s.id == exchange.old.id else s for s in self.mixed.variant.shards]
        self.mixed = replace(self.mixed, variant=replace(self.mixed.variant, shards=shards))
        self.n_weights += self._run_at({**self.mixed.prompt, **opened.prompt}, {**self.mixed.token, **opened.token})

    def _run_at(self, prompt: Mapping[str, WeightState], token: Mapping[str, WeightState]) -> int:
        self.mixed = replace(self.mixed, prompt=prompt, token=token)
        return self._point(self.mixed)

    def _count(self, seconds: float) -> None:
        self.n_steps += 1
        self.stall_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)
