"""A store mended: what ``verify`` finds damaged or missing is taken from elsewhere or made again.

    report = repair(store, model=read_model(path), elsewhere=[FolderSource(backup)])
    report.repaired, report.failed

A damaged shard stands where it is until the whole one replaces it by a rename.  Dropped shards stay dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamella.core.errors import CannotRebuild, StoreError
from lamella.llama.gguf import ModelFile
from lamella.quantize.build import note_source
from lamella.quantize.rebuild import Workshop, get_back
from lamella.quantize.suppliers import Suppliers
from lamella.store.fetching import Reach, ShardSource
from lamella.store.store import Store
from lamella.store.verify import DamagedShard, OnProgress

NOBODY = "no variant needs it: lamella store gc removes it"


@dataclass(frozen=True, slots=True)
class Repaired:
    """A shard that is whole again.

    Attributes:
        reason: what was wrong.
        origin: ``made again``, or where it was taken from.
    """

    id: str
    label: str
    variants: tuple[str, ...]
    reason: str
    origin: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        n_shards: shards looked at.
        failed: shards that are damaged still, each with the reason why it could not be mended.
        mended_links: links for stock llama.cpp that led elsewhere, as ``NAME/LINK``.
        unreadable: documents that a repair does not mend, as ``verify`` reports them.
    """

    n_shards: int
    repaired: tuple[Repaired, ...]
    failed: tuple[DamagedShard, ...]
    mended_links: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not (self.failed or self.unreadable)


def repair(
    store: Store,
    *,
    model: ModelFile | None = None,
    elsewhere: Sequence[ShardSource] = (),
    n_threads: int | None = None,
    reach: Reach | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RepairReport:
    """Hash every shard and get back those that are damaged or missing.

    Args:
        model: the model that the store was made from, where it stands now; the store remembers it.
        elsewhere: asked for a shard before it is made again, in this order.
        n_threads: threads that convert; None for the cores this process may use.
        reach: opens the stores that shards were pulled from; None: they are not asked.
        on_progress: of hashing.

    Raises:
        InvalidRequest: the path of the model is not UTF-8.
        StoreError: the model is not one that the store was made from.
        StorageFailed: the file system refused.
        BuildStopped: ``should_stop`` said so; what was mended stays.
    """
    if model is not None:
        _check_model(store, model)
        note_source(store, model)
    repaired, failed = [], []
    store.origins.forget_unreadable()
    with store.lease() as lease, Suppliers(store, reach) as suppliers:
        variants, _ = lease.hold_everything()
        found = store.verify(on_progress)
        workshop = Workshop(store, lease, model, n_threads)
        refs = {shard.id: shard for variant in variants for shard in variant.shards}
        for damaged in found.damaged:
            try:
                if damaged.id not in refs:
                    raise CannotRebuild(NOBODY)
                origin = get_back(lease, refs[damaged.id], workshop, suppliers, elsewhere, should_stop)
            except CannotRebuild as error:
                reason = f"{damaged.reason}; {error}"
                failed.append(DamagedShard(damaged.id, damaged.label, damaged.variants, reason))
            else:
                repaired.append(Repaired(damaged.id, damaged.label, damaged.variants, damaged.reason, origin))
        store.state.forget_returned()
        unreadable = (*store.state.unreadable(), *store.sources.unreadable(), *found.unreadable_variants)
        mended_links = tuple(link for variant in variants for link in store.mend_links(variant))
    return RepairReport(found.n_shards, tuple(repaired), tuple(failed), mended_links, unreadable)


def _check_model(store: Store, model: ModelFile) -> None:
    """Refuse a model that nothing in the store was made from.

    Raises:
        StoreError: says which weights the store knows.
    """
    variants = store.readable_variants()[0]
    known = {store.identity.weights, *(variant.plan.model.weights for variant in variants)}
    identity = model.spec.identity
    if identity.structure != store.identity.structure:
        store.check_same_model(identity)
    if identity.weights not in known:
        raise StoreError(
            f"{model.paths[0]} is not what {store.path} was made from: its weights are {identity.weights[:12]}, "
            f"the store's shards were made from {', '.join(sorted(w[:12] for w in known if w))}"
        )
