"""A store kept within its quota: garbage goes first, then shards that can be got back (``store.keeping`` chooses).

    report = trim(store)
    report.dropped, report.short_bytes

A shard is dropped only if it is on record that the recipe which this installation would follow made that very shard,
from a source that is there as it was noted; or if the store that it was pulled from says at this moment that it has it.
Metadata stays: it is small, and everything needs it.  So does what somebody has in a lease: others may build, load and
run meanwhile.
"""

from __future__ import annotations

import time

from lamella.core.artifacts import ShardRef
from lamella.core.errors import CannotRebuild, InvalidRequest, StoreError
from lamella.quantize.rebuild import Maker, Workshop
from lamella.quantize.recipe import ShardJob
from lamella.quantize.suppliers import NOT_PULLED, Suppliers
from lamella.quantize.tensor import Conversion
from lamella.store.fetching import Reach
from lamella.store.keeping import KeptShard, TrimReport, choose
from lamella.store.store import Store
from lamella.store.verify import users_of

COPY_WORK = 0.1
SCALE_WORK = 1.0
K_QUANT_WORK = 10.0
SEARCHED_WORK = 100.0
"""What making one weight of a type costs, against one of ``Q8_0``.  Orders of magnitude, not measurements: a copy is
only read and written, a K-quant tries scales and minima for each block, types of a codebook search a grid."""

FETCH_WORK = 10.0
"""What fetching a byte over the network costs, in the same unit."""

IN_USE = "in use by somebody at work"
OF_METADATA = "of metadata"

_SEARCHED = ("IQ1", "IQ2", "IQ3", "NVFP4", "MXFP4")


def trim(store: Store, *, reach: Reach | None = None, now: float | None = None) -> TrimReport:
    """Drop shards until the quota holds, or as many as may go.

    Args:
        reach: opens the stores that shards were pulled from; None: they are not asked, and pulled shards stay.
        now: seconds since 1970; None for the clock's.

    Raises:
        InvalidRequest: the store has no quota.
        StoreBusy: a loader that cannot write a lease took longer than ``store.locks.LONGEST_WAIT_S``.
        StoreFormatError: a variant, a pin, a lease or the quota cannot be read; names the cure.
        StorageFailed: the file system refused.
    """
    quota_bytes = store.state.quota_bytes()
    if quota_bytes is None:
        raise InvalidRequest(f"{store.path} has no quota; give it one with: lamella store quota {store.path} 2GiB")
    before = store.state.stored_bytes()
    if before <= quota_bytes:
        return TrimReport(quota_bytes, before)
    garbage_bytes = store.collect_garbage().freed_bytes
    dropped: list[ShardRef] = []
    with Suppliers(store, reach) as suppliers:
        while True:
            kept = {shard.ref.id: shard for shard in survey(store, suppliers)}
            excess, pinned = store.state.stored_bytes() - quota_bytes, store.state.pinned()
            when = time.time() if now is None else now
            choice = choose(tuple(kept.values()), pinned=pinned, excess_bytes=excess, now=when)
            gone = store.drop([kept[shard.id] for shard in choice.dropped])
            dropped += gone
            if len(gone) == len(choice.dropped):  # else somebody came between the look and the drop: look again
                break
    return TrimReport(quota_bytes, store.state.stored_bytes(), garbage_bytes, tuple(dropped), choice.kept_bytes)


def keep_quota(store: Store, reach: Reach | None = None) -> TrimReport | None:
    """``trim`` for the end of a build or pull, which has succeeded whatever comes of this; None if there is no quota.

    Raises:
        StoreFormatError: the quota cannot be read.
        StorageFailed: the file system refused.
    """
    quota_bytes = store.state.quota_bytes()
    if quota_bytes is None:
        return None
    try:
        return trim(store, reach=reach)
    except StoreError as error:  # somebody keeps the store locked, or a document cannot be read
        return TrimReport(quota_bytes, store.state.stored_bytes(), obstacle=str(error))


def survey(store: Store, suppliers: Suppliers) -> tuple[KeptShard, ...]:
    """What is known of each shard that is there and needed.

    Raises:
        StoreFormatError: a variant or a lease cannot be read.
    """
    variants, leased = store.variants(), store.leased_ids()
    used = {variant.name: store.state.last_used(variant.name) for variant in variants}
    shards = {shard.id: shard for variant in variants for shard in variant.shards}
    metadata = {variant.shards[0].id for variant in variants}
    with store.lease(reading=True) as lease:
        workshop, found = Workshop(store, lease), []
        for shard in shards.values():
            if store.shard_path(shard.id).exists():
                names = users_of(shard.id, variants)
                stays = OF_METADATA if shard.id in metadata else IN_USE if shard.id in leased else ""
                work, obstacle = (0.0, stays) if stays else _way_back(shard, workshop, suppliers)
                found.append(KeptShard(shard, names, max(used[name] for name in names), work, obstacle))
        return tuple(found)


def _way_back(shard: ShardRef, workshop: Workshop, suppliers: Suppliers) -> tuple[float, str]:
    """What getting a shard back costs, and why that is not certain; "" if it is."""
    work = 0.0
    try:
        maker = workshop.maker(shard)
        work, obstacle = work_of(maker.job), _doubt(maker)
        serving = maker.source.variant
        if serving is not None and shard in serving.shards:
            return work, f"of variant {serving.name}, which others are made from while the model file is gone"
    except CannotRebuild as error:
        obstacle = f"cannot be made again ({error})"
    if not obstacle:
        return work, ""
    missing = suppliers.obstacle(shard)
    if not missing:
        return FETCH_WORK * shard.n_bytes, ""
    return work, obstacle if missing == NOT_PULLED else f"{obstacle}, nor be fetched ({missing})"


def _doubt(maker: Maker) -> str:
    """Why a shard that can perhaps be made again may not come out the same; "" if it does."""
    if maker.source.change:
        return f"cannot be made again for certain ({maker.source.change})"
    if not maker.is_certain:
        return "cannot be made again for certain (not on record to come out the same with these versions)"
    return ""


def work_of(job: ShardJob) -> float:
    """What making a shard costs, in weights converted to ``Q8_0``."""
    return sum(_work_of_weight(c) * c.source.spec.n_weights for c in job.conversions)


def _work_of_weight(conversion: Conversion) -> float:
    name = conversion.target.name
    if conversion.copies or name in ("F32", "F16", "BF16"):
        return COPY_WORK
    if name.startswith(_SEARCHED):
        return SEARCHED_WORK
    return K_QUANT_WORK if name.endswith("_K") or name.startswith("IQ4") else SCALE_WORK
