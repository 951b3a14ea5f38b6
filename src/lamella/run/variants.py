"""The variants of a running model: which one computes, which ones are warm, and the change from one to another.

    live = LiveVariants(store, model, tensors, layouts, n_warm=2, check=False)
    live.switch_to(live.prepare("small").result())      # between two decodes

A switch points every weight whose state differs at the other variant's memory.  Nothing is copied and the KV cache is
not touched; after it, logits equal those of a freshly loaded variant bit for bit, for equal layouts.

Under a memory ceiling ``prepare`` first closes what is only kept warm.  A variant that does not fit even so comes as a
``StagedVariant``, and is switched to shard by shard (``run.stepwise``).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.errors import EngineFailed, StoreError
from lamella.core.giving_way import Rests, give_way
from lamella.core.model import TensorSpec
from lamella.core.units import MIB
from lamella.llama.model import Model
from lamella.llama.weights import WeightState
from lamella.run.ceiling import Ceiling, opening_peak, pairs_of, plan_exchanges, total_bytes, what_to_drop
from lamella.run.layouts import Layout
from lamella.run.open_variants import OpenVariants
from lamella.run.pointers import WeightPointers
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant, SwitchReport
from lamella.run.process_memory import private_bytes
from lamella.run.shards import Placement, ShardPool
from lamella.run.stepwise import StepwiseChange
from lamella.store.store import Store

SAVING_SLACK_BYTES = 16 * MIB
"""What a change that saves memory may take beyond what is taken: the process grows a little while it goes on."""
DeviceOf = Callable[[int | None], str | None]
"""The ggml device that has a layer, or what stands outside of layers (None); None for the CPU."""


class LiveVariants:
    """Owns the open shards of a running model and decides where its weights point.

    ``prepare`` may be called at any time; all that changes what runs, only between two decodes.  Weights always point
    into the running variant or into one that is held.

    Attributes:
        is_computing: whether steps run that somebody waits for; a variant is then prepared in small pieces with rests.
            Whoever makes the steps sets it.
    """

    def __init__(
        self,
        store: Store,
        model: Model,
        tensors: Mapping[str, TensorSpec],
        layouts: Mapping[str, Layout],
        *,
        n_warm: int,
        check: bool,
        ceiling: Ceiling | None = None,
        device_of: DeviceOf | None = None,
        on_moved: Callable[[], None] | None = None,
    ) -> None:
        """Find the weights of a loaded model.

        Args:
            tensors: the model's tensors by name.
            layouts: by ggml type name.
            n_warm: variants whose shards stay open, the running one included; least recently used go first.
            check: verify the hashes of a variant's shards when it is prepared.
            ceiling: of the process's memory; None for none.
            device_of: the device of each layer, as the model was loaded for; None where the CPU computes all.
            on_moved: called after weights were pointed elsewhere, where a graph that is used again would keep their
                addresses: on devices, and where it has views of weights.
        """
        self._store, self._tensors, self._n_warm, self._check = store, tensors, n_warm, check
        self._ceiling = self._usual_ceiling = ceiling
        self._pointers = WeightPointers(model, tensors)
        self._on_moved = on_moved if device_of or self._pointers.has_views else None
        placement = Placement(self._placed(device_of)) if device_of else None
        self._pool = ShardPool(layouts, self._pointers.repackable, gives_back=ceiling is not None, placement=placement)
        self._pool_use = threading.Lock()  # held by whoever opens shards: a preparation, or a change shard by shard
        self._lock = threading.Lock()  # of _open
        self._open = OpenVariants()
        self._background = ThreadPoolExecutor(1, "lamella-prepare", give_way)
        self._change: StepwiseChange | None = None
        self._is_closed = False
        self._name = ""
        self.is_computing = False

    def _placed(self, device_of: DeviceOf) -> dict[str, str]:
        """Weight -> device, of those that leave the host."""
        found = {name: device_of(self._tensors[name].layer) for name in self._pointers.placeable}
        return {name: device for name, device in found.items() if device is not None}

    @property
    def current(self) -> PreparedVariant | None:
        """What runs: a variant, or in the middle of a change shard by shard a mixture; None before the first."""
        return self._open.current

    @property
    def name(self) -> str:
        """The variant that runs; during a change shard by shard the one before."""
        return self._name

    @property
    def repacked_bytes(self) -> int:
        """Private memory of repacked weights; everything else is shared page cache."""
        return self._pool.repacked_bytes

    @property
    def device_bytes(self) -> int:
        """Memory of the device that weights take."""
        return self._pool.device_bytes

    @property
    def mapped_bytes(self) -> int:
        """Size of the pages of shards that are mapped now, without those that only copies were read of."""
        return self._pool.mapped_bytes

    @property
    def ceiling(self) -> Ceiling | None:
        """Of the process's memory, as it was given; None for none."""
        return self._usual_ceiling

    @property
    def spare_bytes(self) -> int | None:
        """What the ceiling leaves beside all that is there now or was planned; None where there is no ceiling."""
        if self._usual_ceiling is None:
            return None
        return self._usual_ceiling.spare_bytes(self._pool.mapped_bytes, self._pool.repacked_bytes)

    @property
    def warm(self) -> tuple[str, ...]:
        """Names of the variants that can be switched to at once."""
        with self._lock:
            warm = [n for n, p in self._open.warm.items() if not p.is_mixed]
            return (*warm, *(p.variant.name for p in self._open.prepared if isinstance(p, PreparedVariant)))

    def save_memory(self, *, is_on: bool) -> None:
        """Take no more than what is taken now, or as much as before again: for when a machine is short of memory.

        What is only warm is closed now, and a change goes shard by shard where both variants have no room.
        """
        self._pool.give_back(is_on=is_on or self._usual_ceiling is not None)
        if is_on:
            self._close_spare()
        with self._lock:
            usual = self._ceiling = self._usual_ceiling
            measure = usual.measure if usual else private_bytes
            weights = total_bytes(self._pool.open_ids, self._pool.footprints)
            others = measure() - self._pool.repacked_bytes
            now = Ceiling(weights + others + SAVING_SLACK_BYTES, planned_bytes=0, measure=measure)
            if is_on and (usual is None or now.n_bytes < usual.n_bytes):
                self._ceiling = now

    # --- getting ready ---------------------------------------------------------------------------------------------

    def prepare(self, name: str) -> Future[Ready]:
        """Get a variant into memory in the background; one that was replaced in the store is got anew.

        Raises:
            UnknownVariant: at once.  What else fails is raised by the future; asking again tries again.
            EngineFailed: ``close`` was called.
        """
        version = self._store.version(name)
        with self._lock:
            if self._is_closed:
                raise EngineFailed("the engine was closed")
            self._open.forget_failures()
            warm = self._open.warm.get(name)
            if warm is not None and warm.version == version:
                done: Future[Ready] = Future()
                done.set_result(warm)
                return done
            pending = self._open.pending.get(name)
            if pending is not None and pending.done():
                ready = pending.result()
                if ready.version != version or isinstance(ready, StagedVariant):  # there may be room for it now
                    self._open.let_go(name)
            if name not in self._open.pending:
                self._open.pending[name] = self._background.submit(self._prepare, name)
            return self._open.pending[name]

    def _prepare(self, name: str) -> Ready:
        start = time.perf_counter()
        with contextlib.ExitStack() as on_failure:
            lease = on_failure.enter_context(self._store.lease(reading=True))
            version = self._store.version(name)  # first: if it is replaced now, the next look finds another one
            variant = lease.hold(name)
            paths = self._store.ready_paths(variant, should_stop=lambda: self._is_closed)
            if self._check:
                self._store.check(variant)
            prompt: dict[str, WeightState] = {}
            token: dict[str, WeightState] = {}
            rests = Rests(self._may_rest)
            with self._pool_use:
                self._check_model(variant, paths)
                if has_room := self._make_room(variant, paths):
                    for shard, path in zip(variant.shards, paths, strict=True):
                        with rests.after():
                            states = self._pool.open(shard.id, path, self._tensors)
                        prompt.update(states.prompt)
                        token.update(states.token)
            lease.settle()
            on_failure.pop_all()
        seconds = time.perf_counter() - start
        if not has_room:
            return StagedVariant(variant, version, paths, lease, seconds)
        return PreparedVariant(variant, version, prompt, token, lease, seconds)

    def _may_rest(self) -> bool:
        """Whether there are steps to give way to, and nothing that waits for this preparation's end."""
        with self._lock:
            n_waiting = sum(not f.done() for f in self._open.pending.values())
            is_short = self._ceiling is not self._usual_ceiling
            return self.is_computing and n_waiting <= 1 and not is_short and not self._is_closed

    def _check_model(self, variant: Variant, paths: Sequence[Path]) -> None:
        names = {n for s, path in zip(variant.shards, paths, strict=True) for n in self._pool.stored(s.id, path)}
        missing = [n for n in sorted(self._pointers.names) if n not in names]
        if missing:
            raise StoreError(f"variant {variant.name} has no {', '.join(missing[:3])}: it is of another model")

    def _make_room(self, variant: Variant, paths: Sequence[Path]) -> bool:
        """Close what is only warm until a variant's shards fit beside those in use; whether they can.

        Raises:
            ExceedsCeiling: there is no room for them even alone.
        """
        if self._is_closed:
            raise EngineFailed("the engine was closed")
        for shard, path in zip(variant.shards, paths, strict=True):
            self._pool.footprint(shard.id, path, self._tensors)
        ceiling = self._ceiling  # the loop's thread may end the saving of memory meanwhile
        if ceiling is None:
            return True
        wanted = [s.id for s in variant.shards]
        room = ceiling.room_bytes(self._pool.repacked_bytes)
        self._check_alone(variant, wanted, room, ceiling)
        with self._lock:
            spare = [(n, p.shard_ids) for n, p in self._open.spare().items()]
            drop = what_to_drop(wanted, self._open.ids_in_use, spare, self._pool.footprints, room)
            for name in drop or ():
                self._open.let_go(name)
            self._close_unused()
        return drop is not None

    def _check_alone(self, variant: Variant, wanted: Sequence[str], room: int, ceiling: Ceiling) -> None:
        needed = opening_peak(0, wanted, self._pool.footprints)
        if needed > room:
            hint = "a smaller variant, fewer KV cells (--cells) or a larger ceiling (--memory) would do"
            raise ceiling.refusal(f"variant '{variant.name}'", needed, room, hint)

    def change_to(self, name: str) -> SwitchReport:
        """Prepare a variant and run at it, for a caller who has the model to himself.

        Raises:
            UnknownVariant, ShardDamaged, ExceedsCeiling: it cannot be opened.
        """
        while True:
            ready = self.prepare(name).result()
            report = self._change_stepwise(ready) if isinstance(ready, StagedVariant) else self.switch_to(ready)
            if report is not None:
                return report

    def _change_stepwise(self, staged: StagedVariant) -> SwitchReport | None:
        change = self.begin(staged)
        if change is None:
            return None
        try:
            while not change.is_over:
                change.exchange_next()
        finally:
            report = self.end(change)
        return report

    # --- switching ---------------------------------------------------------------------------------------------------

    def switch_to(self, prepared: PreparedVariant) -> SwitchReport | None:
        """Run at this variant from the next decode on; None where another one pushed it out: prepare it again."""
        name = prepared.variant.name
        was_warm = self._open.warm.get(name) is prepared
        if not self.hold(prepared):
            return None
        before, peak = self.current, total_bytes(self._pool.open_ids, self._pool.footprints)
        try:
            start = time.perf_counter()
            n_weights = self.use(prepared.token)
            seconds = time.perf_counter() - start
            with self._lock:
                self._open.current = prepared
                report_before, self._name = self._name, name
                if before is not None and before is not self._open.warm.get(before.variant.name):
                    before.lease.close()  # it was replaced in the store while it ran
        finally:
            self.release(name)
        old = set(before.shard_ids) if before else set()
        return SwitchReport(
            before=report_before,
            after=name,
            n_weights=n_weights,
            n_shards=sum(s.id not in old for s in prepared.variant.shards),
            switch_seconds=seconds,
            prepare_seconds=0.0 if was_warm else prepared.seconds,
            mapped_bytes=self._pool.mapped_bytes,
            repacked_bytes=self._pool.repacked_bytes,
            n_steps=1,
            longest_seconds=seconds,
            peak_bytes=peak,
        )

    def hold(self, prepared: PreparedVariant) -> bool:
        """Keep a variant open, beyond ``n_warm`` if need be, until it is released as often as it was held.

        Returns:
            False where another one pushed it out: prepare it again.
        """
        with self._lock:
            if not self._open.is_ready(prepared):
                return False
            self._open.admit(prepared)
            self._open.held[prepared.variant.name] += 1
        self._close_what_is_too_much()
        return True

    def release(self, name: str) -> None:
        """Undo one ``hold``."""
        with self._lock:
            self._open.held[name] -= 1
            if self._open.held[name] <= 0:
                del self._open.held[name]
            used = self._open.in_use
        is_safe = any(self._pointers.is_at(states) for p in used for states in (p.prompt, p.token))
        if self.current is not None and not is_safe:  # what is not in use may be closed at any time
            self.use(self.current.token)
        self._close_what_is_too_much()

    def check_beside(self, staged: StagedVariant) -> bool:
        """Refuse a variant that does not fit beside the running one even when nothing else is open.

        Returns:
            False where memory is not bounded any more: it finds room when it is prepared again.

        Raises:
            ExceedsCeiling: it does not.
        """
        if self._ceiling is None:
            return False
        assert self.current is not None
        running, wanted = set(self.current.shard_ids), staged.shard_ids
        in_use = total_bytes(running, self._pool.footprints)
        needed = opening_peak(in_use, [i for i in wanted if i not in running], self._pool.footprints)
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        if needed > room:
            what = f"variant '{staged.variant.name}', beside '{self.name}', which runs,"
            raise self._ceiling.refusal(what, needed, room, "ask for it without a variant, or switch to it")
        return True

    def begin(self, staged: StagedVariant) -> StepwiseChange | None:
        """Begin a change shard by shard; it must be ended.  What is only warm is closed.

        Returns:
            None where another variant is being prepared, or has pushed this one out, or memory is not bounded any more:
            prepare it again.

        Raises:
            ExceedsCeiling: there is no room for it beside variants that are held.
        """
        if not self._pool_use.acquire(blocking=False):
            return None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._pool_use.release)
            with self._lock:
                if self._is_closed or self._open.is_preparing or not self._open.is_ready(staged):
                    return None
                if self._ceiling is None:
                    return None
                self._change = self._plan(staged)
                del self._open.pending[staged.variant.name]
            on_failure.pop_all()
        return self._change

    def _plan(self, staged: StagedVariant) -> StepwiseChange:
        assert self._ceiling is not None  # or it would not have begun
        assert self.current is not None  # or it would have been refused
        before, footprints = self.current, self._pool.footprints
        held = self._open.held_ids
        pairs = pairs_of(before.variant.shards, staged.variant.shards, held, footprints)
        in_use = total_bytes(self._open.ids_in_use, footprints)
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        exchanges, peak = plan_exchanges(pairs, in_use, room)
        if exchanges is None:
            names = ", ".join(f"'{n}'" for n in self._open.held)
            what = f"variant '{staged.variant.name}', beside {names or 'what is in use'},"
            raise self._ceiling.refusal(what, peak, room, "switch when their requests have ended")
        is_warm = self._open.warm.get(before.variant.name) is before  # or it was replaced in the store while it ran
        is_held = is_warm and before.variant.name in self._open.held
        for name in list(self._open.spare(besides=staged.variant.name)):
            self._open.let_go(name)
        self._close_unused()
        return StepwiseChange(
            self._pool,
            self._tensors,
            staged,
            self._mix(before, staged, is_warm=is_warm, is_held=is_held),
            exchanges,
            replaced=None if is_held else before,
            peak_bytes=peak,
            kept=held,
            point=self._run_at,
        )

    def _mix(self, before: PreparedVariant, staged: StagedVariant, *, is_warm: bool, is_held: bool) -> PreparedVariant:
        """What runs from the first exchange on; both variants' shards stay in the store for it."""
        leases = contextlib.ExitStack()
        leases.callback(staged.lease.close)
        name = before.variant.name
        if not is_held:
            leases.callback(before.lease.close)
            if is_warm:
                del self._open.warm[name]
        mixed_name = f"{name}>{staged.variant.name}"
        mixed = replace(before, variant=replace(before.variant, name=mixed_name), lease=leases, is_mixed=True)
        self._open.warm[mixed_name] = self._open.current = mixed
        return mixed

    def _run_at(self, mixed: PreparedVariant) -> int:
        with self._lock:
            self._open.warm[mixed.variant.name] = self._open.current = mixed
        return self.use(mixed.token)

    def end(self, change: StepwiseChange) -> SwitchReport | None:
        """End a change that is over, or give it up where it is: the model runs on at the mixture; None then."""
        before = self._name
        change.give_up()
        with self._lock:
            if self._change is change:
                if change.is_over:
                    self._finish(change)
                self._change = None
                self._pool_use.release()
        self._close_what_is_too_much()
        return change.report(before) if change.is_over else None

    def _finish(self, change: StepwiseChange) -> None:
        """The mixture has become the variant."""
        staged, mixed = change.staged, change.mixed
        if change.replaced is not None:
            change.replaced.lease.close()
        del self._open.warm[mixed.variant.name]
        name = staged.variant.name
        self._open.current = PreparedVariant(
            staged.variant, staged.version, mixed.prompt, mixed.token, staged.lease, staged.seconds
        )
        self._open.warm[name] = self._open.current
        self._name = name

    def use(self, states: Mapping[str, WeightState]) -> int:
        """Point every weight that is elsewhere at ``states``; returns how many."""
        moved = self._pointers.point_at(states)
        if moved and self._on_moved is not None:
            self._on_moved()
        return moved

    # --- what stays open -------------------------------------------------------------------------------------------

    def _close_what_is_too_much(self) -> None:
        """Close the shards of variants that are neither running, nor held, nor among the ``n_warm`` last used.

        Under a ceiling also of the last used, if the process has grown meanwhile.
        """
        with self._lock:
            self._open.drop_beyond(self._n_warm)
            if self._open.is_preparing or not self._pool_use.acquire(blocking=False):
                return  # what is being opened belongs to nobody yet
            try:
                self._keep_below_the_ceiling()
                self._close_unused()
            finally:
                self._pool_use.release()

    def _keep_below_the_ceiling(self) -> None:
        if self._ceiling is None:
            return
        spare = [(n, p.shard_ids) for n, p in self._open.spare().items()]
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        drop = what_to_drop((), self._open.ids_in_use, spare, self._pool.footprints, room)
        for name in [n for n, _ in spare] if drop is None else drop:
            self._open.let_go(name)

    def _close_spare(self) -> None:
        """Close what does not run and is not held."""
        with self._lock:
            for name in self._open.spare():
                self._open.let_go(name)
            if self._open.is_preparing or not self._pool_use.acquire(blocking=False):
                return  # who opens shards closes what is too much before
            try:
                self._close_unused()
            finally:
                self._pool_use.release()

    def _close_unused(self) -> None:
        """Close every shard that no variant needs that runs, is held, warm or prepared."""
        self._pool.keep_only(self._open.needed_ids)

    def close(self) -> None:
        """Close all shards.  The model must not decode any more."""
        with self._lock:
            self._is_closed = True
            change = self._change
        if change is not None:
            self.end(change)
        self._background.shutdown(wait=True, cancel_futures=True)
        self._pool.close()
        with self._lock:
            self._open.close()
