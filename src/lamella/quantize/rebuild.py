"""Shards got back, bit for bit: made again as the plans of their variants say, or fetched from where they came.

    restore_variant(store, variant)         # all of a variant's shards that are not there
    Workshop(store, lease).make(shard)      # or CannotRebuild, which says why

A store notes where its models stand (``store.sources``).  Where that file is gone, a variant that holds every tensor as
the file did serves as well.  What comes out is compared with the shard's name before it is given a place, so neither a
changed source nor another version of llama.cpp can put wrong bytes under a name.  What was pulled is fetched again
(``suppliers``) where it cannot be made.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from lamella.core.artifacts import Plan, ShardRef, Variant
from lamella.core.errors import CannotRebuild, LamellaError, ModelError, ShardDamaged
from lamella.llama.gguf import ModelFile, read_model, weights_hash
from lamella.llama.imatrix import ImportanceMatrix, read_imatrix
from lamella.quantize.build import TUNING_SETTING, make_again
from lamella.quantize.making import BuildStopped
from lamella.quantize.recipe import ShardJob, importance_hash, shard_jobs, tuned_on
from lamella.quantize.suppliers import Stoppable, Suppliers
from lamella.quantize.tuned import Tuning
from lamella.store.fetching import Reach, ShardSource, fetch
from lamella.store.leases import Lease
from lamella.store.sources import IMPORTANCE_SETTING, SourceNote
from lamella.store.store import Restore, Store
from lamella.store.verify import describe

MADE_AGAIN = "made again"


@dataclass(frozen=True, slots=True)
class Source:
    """A model that shards can be made from.

    Attributes:
        change: what is not as it was when it was noted; "" if nothing.
        variant: the variant of the store that serves as the source; None if it is a file.
    """

    model: ModelFile
    change: str = ""
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class Maker:
    """How a shard can be made.

    Attributes:
        is_certain: this recipe, with these versions, is on record to have made that very shard.
    """

    source: Source
    job: ShardJob
    is_certain: bool


class Workshop:
    """What the shards of a store can be made from.  Looks at a source or a plan once, when it is first needed."""

    def __init__(
        self, store: Store, lease: Lease, given: ModelFile | None = None, n_threads: int | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            lease: takes what is made, and the shards of a variant that serves as the source.
            given: a model that serves in place of a noted one with the same weights.
            n_threads: threads that convert; None for the cores this process may use.
        """
        self._store, self._lease, self._given, self._n_threads = store, lease, given, n_threads
        self._variants = store.readable_variants()[0]
        self._source = functools.cache(self._open_source)
        self._jobs: dict[str, tuple[Source, tuple[ShardJob, ...]] | LamellaError] = {}

    def maker(self, shard: ShardRef) -> Maker:
        """How to make a shard; a way that is on record, if there is one.

        Raises:
            CannotRebuild: there is no way; says why, for each variant that needs it.
        """
        makers, reasons = [], []
        for variant, number in self._places(shard):
            try:
                makers.append(self._maker(variant, number))
            except LamellaError as error:
                reasons.append(str(error))
        if not makers:
            raise CannotRebuild("; ".join(dict.fromkeys(reasons)) or "no variant needs it")
        return max(makers, key=lambda maker: maker.is_certain)

    def is_certain(self, shard: ShardRef) -> bool:
        """Whether there is a way, and it is on record to have made that very shard."""
        with contextlib.suppress(CannotRebuild):
            return self.maker(shard).is_certain
        return False

    def make(self, shard: ShardRef, should_stop: Callable[[], bool] | None = None) -> None:
        """Make a shard, or wait for another process that is making it.

        Raises:
            CannotRebuild: there is no way, or the bytes came out otherwise; nothing was stored.
            ModelError: the source cannot be read.
            StorageFailed: the file system refused.
            BuildStopped: ``should_stop`` said so.
        """
        maker = self.maker(shard)
        try:
            make_again(
                maker.source.model, self._store, self._lease, maker.job, shard,
                n_threads=self._n_threads, should_stop=should_stop,
            )  # fmt: skip
        except ShardDamaged as error:
            raise CannotRebuild(f"{error} ({_suspicion(maker)})") from None

    def _places(self, shard: ShardRef) -> Iterator[tuple[Variant, int]]:
        for variant in self._variants:
            for number, ref in enumerate(variant.shards):
                if ref.id == shard.id:
                    yield variant, number

    def _maker(self, variant: Variant, number: int) -> Maker:
        source, jobs = self._jobs_of(variant)
        if len(jobs) != len(variant.shards):
            raise CannotRebuild(f"{variant.name} has {len(variant.shards)} shards, its source gives {len(jobs)}")
        job = jobs[number]
        if tuned_on([job]):
            raise CannotRebuild("it was tuned on text (--tune-on), which the store does not keep")
        found = self._store.remembered(job.recipe_id)
        return Maker(source, job, found is not None and found.id == variant.shards[number].id)

    def _jobs_of(self, variant: Variant) -> tuple[Source, tuple[ShardJob, ...]]:
        if variant.name not in self._jobs:
            try:
                self._jobs[variant.name] = self._plan_again(variant.plan)
            except LamellaError as error:
                self._jobs[variant.name] = error
        found = self._jobs[variant.name]
        if isinstance(found, LamellaError):
            raise found
        return found

    def _plan_again(self, plan: Plan) -> tuple[Source, tuple[ShardJob, ...]]:
        """The jobs that made a variant, but not what it was tuned on."""
        source = self._source(plan.model.weights or self._store.identity.weights)
        used = str(plan.settings.get(IMPORTANCE_SETTING, ""))
        importance = self._importance(used) if used else None
        text = plan.settings.get(TUNING_SETTING)
        jobs = shard_jobs(source.model, plan, importance, Tuning(str(text), _no_text) if text else None)
        if importance_hash(jobs) != used:
            raise CannotRebuild(f"{self._store.path} keeps another importance matrix than it was rounded under")
        return source, jobs

    def _importance(self, used: str) -> ImportanceMatrix:
        path = self._store.sources.importance_path(used)
        if path is None:
            raise CannotRebuild(f"{self._store.path} does not keep its importance matrix {used[:12]}")
        return read_imatrix(path)

    def _open_source(self, weights: str) -> Source:
        """The model with these weights: the given one, the noted one, or a variant that equals it."""
        given, store = self._given, self._store
        if given is not None and given.spec.identity.weights == weights:
            return Source(given)
        note = store.sources.find(weights)
        cure = f"name it with: lamella store repair {store.path} --model FILE"
        if note is None:
            raise CannotRebuild(f"{store.path} does not know which model file it was made from; {cure}")
        try:
            return Source(_read(note), note.change())
        except ModelError as error:
            variant = _variant_like(store, self._lease, note)
            if variant is None:
                raise CannotRebuild(f"its source cannot be used: {error}; if it was moved, {cure}") from None
            return variant


def _read(note: SourceNote) -> ModelFile:
    path = Path(note.files[0].path)
    for file in note.files:
        if not Path(file.path).is_file():  # a pipe of that name would be waited for
            raise ModelError(f"{file.path}: No such file")
    try:
        found = read_model(path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    if found.spec.identity.weights != note.model.weights:
        raise ModelError(f"{path} holds other weights than it did ({note.change() or 'its file is as old as noted'})")
    return found


def _variant_like(store: Store, lease: Lease, note: SourceNote) -> Source | None:
    """A variant that holds every tensor as the noted model does, all of it there; its shards stay."""
    types = dict(note.tensors)
    for variant in store.readable_variants()[0]:
        if variant.plan.tensors != types:
            continue
        lease.protect(shard.id for shard in variant.shards)
        if any(map(store.quick_damage, variant.shards)):
            continue
        found = read_model(store.first_link(variant.name))
        tensors = {name: found.tensors[name] for name in types}  # in file order: the identity depends on it
        if weights_hash(tensors.values()) == note.model.weights:
            spec = replace(found.spec, identity=note.model, tensors=tuple(t.spec for t in tensors.values()))
            return Source(replace(found, spec=spec, tensors=tensors), variant=variant)
    return None


def _no_text(_layers: Sequence[int]) -> NoReturn:
    raise CannotRebuild("the store does not keep the text that its rounding was tuned on")


def _suspicion(maker: Maker) -> str:
    """Why bytes may have come out otherwise."""
    if maker.source.change:
        return maker.source.change
    if maker.source.variant is not None:
        return f"made from variant {maker.source.variant.name}, which may be damaged itself"
    if maker.is_certain:
        return "the source is damaged or changed"
    other = "another version of Lamella or llama.cpp made it"
    return f"the source has other metadata than it had, or {other}" if maker.job.group.number == 0 else other


def get_back(
    lease: Lease,
    shard: ShardRef,
    workshop: Workshop,
    suppliers: Suppliers,
    elsewhere: Sequence[ShardSource] = (),
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """Take a shard over from elsewhere, or make it, or fetch it from where it was pulled from, whichever works first.

    Making it comes before fetching it only where that is on record to give these very bytes.

    Returns where it came from.  It stays under the lease.

    Raises:
        CannotRebuild: nobody has it, and it cannot be made; says why.
        StorageFailed: the file system refused.
        BuildStopped: ``should_stop`` said so.
    """
    reasons = []
    for source in elsewhere:
        try:
            fetch(lease, shard, Stoppable(source, should_stop))
        except BuildStopped:
            raise
        except LamellaError as error:
            reasons.append(str(error))
        else:
            return source.name

    def make() -> str:
        workshop.make(shard, should_stop)
        return MADE_AGAIN

    def fetch_again() -> str | None:
        return suppliers.fetch(lease, shard, should_stop)

    for way in (make, fetch_again) if workshop.is_certain(shard) else (fetch_again, make):
        try:
            origin = way()
        except (CannotRebuild, ModelError) as error:
            reasons.append(str(error))
        else:
            if origin is not None:
                return origin
    raise CannotRebuild("; ".join(reasons))


def restorer(n_threads: int | None = None, reach: Reach | None = None) -> Restore:
    """``restore_variant`` as ``Store.open`` takes it.

    Args:
        n_threads: threads that convert; None or 0 for the cores this process may use.
        reach: opens the stores that shards were pulled from; None: they are not asked.
    """
    return functools.partial(restore_variant, n_threads=n_threads, reach=reach)


def restore_variant(
    store: Store,
    variant: Variant,
    should_stop: Callable[[], bool] | None = None,
    *,
    elsewhere: Sequence[ShardSource] = (),
    n_threads: int | None = None,
    reach: Reach | None = None,
) -> Mapping[str, str]:
    """Get back the shards of a variant that are not there in full size; returns where each (label) came from.

    While this runs they stay; whoever is about to use them holds a lease of their own.

    Args:
        elsewhere: asked first.
        n_threads, reach: see ``restorer``.

    Raises:
        UnknownVariant: it was removed meanwhile.
        ShardDamaged: a shard cannot be got back; says why.
        StorageFailed: the file system refused.
        BuildStopped: ``should_stop`` said so.
    """
    got: dict[str, str] = {}
    if not any(map(store.quick_damage, variant.shards)):
        return got  # a store that may only be read will do
    with store.lease() as lease, Suppliers(store, reach) as suppliers:
        lease.protect(shard.id for shard in variant.shards)
        workshop = Workshop(store, lease, n_threads=n_threads)
        for shard in variant.shards:
            reason = store.quick_damage(shard)
            if reason:
                try:
                    got[shard.label] = get_back(lease, shard, workshop, suppliers, elsewhere, should_stop)
                except CannotRebuild as error:
                    store.check_variant_exists(variant.name)
                    text = describe(shard, [variant.name], reason)
                    raise ShardDamaged(f"{text}; it cannot be made again: {error}") from None
    return got
