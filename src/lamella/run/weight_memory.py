"""The memory of a running model's weights: which shards are open in it, for which variants, under which ceiling.

    with memory.opening:
        if memory.make_room(variant, paths):
            states = [memory.open_shard(shard.id, path) for shard, path in zip(variant.shards, paths)]
    memory.close_what_is_too_much()

What goes first is decided by ``run.ceiling``, and who needs what is noted in ``run.open_variants``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.model import TensorSpec
from lamella.core.units import MIB
from lamella.run.ceiling import (
    Ceiling,
    Exchange,
    opening_peak,
    pairs_of,
    plan_exchanges,
    total_bytes,
    what_to_drop,
)
from lamella.run.open_variants import OpenVariants
from lamella.run.prepared import PreparedVariant, StagedVariant
from lamella.run.process_memory import private_bytes
from lamella.run.shards import ShardPool, ShardStates

SAVING_SLACK_BYTES = 16 * MIB
"""What a change that saves memory may take beyond what is taken: the process grows a little while it goes on."""


class WeightMemory:
    """Opens shards of variants, and closes those that nobody needs or that there is no room for.

    Attributes:
        open: which variants are open and for whom; only for who holds ``lock``.
        lock: of ``open``.
        opening: held by whoever opens shards: a preparation, or a change shard by shard.  Taken before ``lock``.
        pool: the open shards.
        tensors: the model's tensors by name.
        ceiling: of the process's memory, as it was given; None for none.
        is_closing: nothing more may be opened; set under ``lock``.
    """

    def __init__(
        self, pool: ShardPool, tensors: Mapping[str, TensorSpec], *, n_warm: int, ceiling: Ceiling | None
    ) -> None:
        """Begin with nothing open.

        Args:
            n_warm: variants whose shards stay open, the running one included; least recently used go first.
        """
        self.open = OpenVariants()
        self.lock, self.opening = threading.Lock(), threading.Lock()
        self.pool, self.tensors, self.ceiling = pool, tensors, ceiling
        self.is_closing = False
        self._n_warm = n_warm
        self._ceiling_now = ceiling

    @property
    def is_bounded(self) -> bool:
        """Whether there is a ceiling now: the one that was given, or that of saving memory."""
        return self._ceiling_now is not None

    @property
    def is_saving(self) -> bool:
        """Whether less may be taken now than the ceiling that was given allows."""
        return self._ceiling_now is not self.ceiling

    @property
    def repacked_bytes(self) -> int:
        """Private memory of repacked weights; everything else is shared page cache."""
        return self.pool.repacked_bytes

    @property
    def device_bytes(self) -> int:
        """Memory of the device that weights take."""
        return self.pool.device_bytes

    @property
    def mapped_bytes(self) -> int:
        """Size of the pages of shards that are mapped now, without those that only copies were read of."""
        return self.pool.mapped_bytes

    @property
    def total_bytes(self) -> int:
        """What the open shards take, mapped and copied."""
        return total_bytes(self.pool.open_ids, self.pool.footprints)

    @property
    def spare_bytes(self) -> int | None:
        """What the ceiling leaves beside all that is there now or was planned; None where there is no ceiling."""
        if self.ceiling is None:
            return None
        return self.ceiling.spare_bytes(self.pool.mapped_bytes, self.pool.repacked_bytes)

    def save(self, *, is_on: bool) -> None:
        """Take no more than what is taken now, or as much as before again: for when a machine is short of memory.

        What is only warm is closed now, and a change goes shard by shard where both variants have no room.
        """
        self.pool.give_back(is_on=is_on or self.ceiling is not None)
        with self.lock:
            if is_on:
                self.let_go_of_spare()
                with self._unless_opening() as nobody_opens:
                    if nobody_opens:  # or else who does closes what is too much first
                        self.close_unused()
            usual = self._ceiling_now = self.ceiling
            measure = usual.measure if usual else private_bytes
            others = measure() - self.pool.repacked_bytes
            now = Ceiling(self.total_bytes + others + SAVING_SLACK_BYTES, planned_bytes=0, measure=measure)
            if is_on and (usual is None or now.n_bytes < usual.n_bytes):
                self._ceiling_now = now

    # --- opening -----------------------------------------------------------------------------------------------------

    def open_shard(self, shard_id: str, path: Path) -> ShardStates:
        """As ``ShardPool.open``, for who holds ``opening``."""
        return self.pool.open(shard_id, path, self.tensors)

    def make_room(self, variant: Variant, paths: Sequence[Path]) -> bool:
        """Close what is only warm until a variant's shards fit beside those in use; whether they can.

        Raises:
            ExceedsCeiling: there is no room for them even alone.
        """
        for shard, path in zip(variant.shards, paths, strict=True):
            self.pool.footprint(shard.id, path, self.tensors)
        ceiling = self._ceiling_now  # the loop's thread may end the saving of memory meanwhile
        if ceiling is None:
            return True
        wanted = [s.id for s in variant.shards]
        room = ceiling.room_bytes(self.pool.repacked_bytes)
        self._check_alone(variant, wanted, room, ceiling)
        with self.lock:
            drop = self._what_to_drop(wanted, room)
            for name in drop or ():
                self.open.let_go(name)
            self.close_unused()
        return drop is not None

    def _check_alone(self, variant: Variant, wanted: Sequence[str], room: int, ceiling: Ceiling) -> None:
        needed = opening_peak(0, wanted, self.pool.footprints)
        if needed > room:
            hint = "a smaller variant, fewer KV cells (--cells) or a larger ceiling (--memory) would do"
            raise ceiling.refusal(f"variant '{variant.name}'", needed, room, hint)

    def check_beside(self, staged: StagedVariant, running: Collection[str], name: str) -> bool:
        """Refuse a variant that does not fit beside the running one even when nothing else is open.

        Args:
            running: ids of the shards that run.
            name: of the variant that runs, to be told.

        Returns:
            False where memory is not bounded any more: it finds room when it is prepared again.

        Raises:
            ExceedsCeiling: it does not.
        """
        ceiling = self._ceiling_now
        if ceiling is None:
            return False
        in_use = total_bytes(set(running), self.pool.footprints)
        more = [i for i in staged.shard_ids if i not in running]
        needed = opening_peak(in_use, more, self.pool.footprints)
        room = ceiling.room_bytes(self.pool.repacked_bytes)
        if needed > room:
            what = f"variant '{staged.variant.name}', beside '{name}', which runs,"
            raise ceiling.refusal(what, needed, room, "ask for it without a variant, or switch to it")
        return True

    def plan_exchanges(self, before: PreparedVariant, staged: StagedVariant) -> tuple[tuple[Exchange, ...], int]:
        """In which order shards of one variant take the places of another's, and the most memory of it; under ``lock``.

        Raises:
            ExceedsCeiling: there is no room for it beside variants that are held.
        """
        ceiling = self._ceiling_now
        assert ceiling is not None  # or nothing would be exchanged one by one
        pairs = pairs_of(before.variant.shards, staged.variant.shards, self.open.held_ids, self.pool.footprints)
        in_use = total_bytes(self.open.ids_in_use, self.pool.footprints)
        room = ceiling.room_bytes(self.pool.repacked_bytes)
        exchanges, peak = plan_exchanges(pairs, in_use, room)
        if exchanges is None:
            names = ", ".join(f"'{n}'" for n in self.open.held)
            what = f"variant '{staged.variant.name}', beside {names or 'what is in use'},"
            raise ceiling.refusal(what, peak, room, "switch when their requests have ended")
        return exchanges, peak

    # --- closing -----------------------------------------------------------------------------------------------------

    def close_what_is_too_much(self) -> None:
        """Close the shards of variants that are neither running, nor held, nor among the ``n_warm`` last used.

        Under a ceiling also of the last used, if the process has grown meanwhile.
        """
        with self.lock:
            self.open.drop_beyond(self._n_warm)
            with self._unless_opening() as nobody_opens:
                if nobody_opens:
                    self._keep_below_the_ceiling()
                    self.close_unused()

    def let_go_of_spare(self, besides: str = "") -> None:
        """Forget what does not run and is not held, but for a preparation of that name; for who holds ``lock``."""
        for name in self.open.spare(besides):
            self.open.let_go(name)

    def close_unused(self) -> None:
        """Close every shard that no variant needs that runs, is held, warm or prepared.

        For who holds ``opening`` and ``lock``.
        """
        self.pool.keep_only(self.open.needed_ids)

    def close(self) -> None:
        """Close all shards.  The model must not decode any more, and nobody may be opening any."""
        self.pool.close()
        with self.lock:
            self.open.close()

    def _keep_below_the_ceiling(self) -> None:
        if self._ceiling_now is None:
            return
        drop = self._what_to_drop((), self._ceiling_now.room_bytes(self.pool.repacked_bytes))
        for name in list(self.open.spare()) if drop is None else drop:
            self.open.let_go(name)

    def _what_to_drop(self, wanted: Sequence[str], room: int) -> tuple[str, ...] | None:
        spare = [(name, ready.shard_ids) for name, ready in self.open.spare().items()]
        return what_to_drop(wanted, self.open.ids_in_use, spare, self.pool.footprints, room)

    @contextlib.contextmanager
    def _unless_opening(self) -> Iterator[bool]:
        """Whether nobody opens shards, nor begins to in this block: what is being opened belongs to nobody yet."""
        nobody_opens = not self.open.is_preparing and self.opening.acquire(blocking=False)
        try:
            yield nobody_opens
        finally:
            if nobody_opens:
                self.opening.release()
