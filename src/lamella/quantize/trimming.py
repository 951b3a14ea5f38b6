"""A store kept within its quota: garbage goes first, then shards that can be made again (``store.keeping`` chooses).

    report = trim(store)
    report.dropped, report.short_bytes

A shard is dropped only if it is on record that the recipe which this installation would follow made that very shard,
from a source that is there as it was noted.  Metadata stays: it is small, and everything needs it.  So does what
somebody has in a lease: others may build, load and run meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from lamella.core.artifacts import ShardRef
from lamella.core.errors import CannotRebuild, InvalidRequest, StoreError
from lamella.quantize.rebuild import Maker, Workshop
from lamella.quantize.recipe import ShardJob
from lamella.quantize.tensor import Conversion
from lamella.store.keeping import KeptShard, TrimReport, choose
from lamella.store.store import Store
from lamella.store.verify import users_of

COPY_WORK = 0.1
SCALE_WORK = 1.0
K_QUANT_WORK = 10.0
SEARCHED_WORK = 100.0
"""What making one weight of a type costs, against one of ``Q8_0``.  Orders of magnitude, not measurements: a copy is
only read and written, a K-quant tries scales and minima for each block, types of a codebook search a grid."""

IN_USE = "in use by somebody at work"

_SEARCHED = ("IQ1", "IQ2", "IQ3", "NVFP4", "MXFP4")


def trim(store: Store, *, now: float | None = None) -> TrimReport:
    """Drop shards until the quota holds, or as many as may go.

    Args:
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
    while True:
        kept = {shard.ref.id: shard for shard in survey(store)}
        excess, pinned = store.state.stored_bytes() - quota_bytes, store.state.pinned()
        when = time.time() if now is None else now
        choice = choose(tuple(kept.values()), pinned=pinned, excess_bytes=excess, now=when)
        gone = store.drop([kept[shard.id] for shard in choice.dropped])
        dropped += gone
        if len(gone) == len(choice.dropped):  # else somebody came between the look and the drop: look again
            break
    return TrimReport(quota_bytes, store.state.stored_bytes(), garbage_bytes, tuple(dropped), choice.kept_bytes)


def keep_quota(store: Store) -> TrimReport | None:
    """``trim`` for the end of a build, which has succeeded whatever comes of this; None if there is no quota.

    Raises:
        StoreFormatError: the quota cannot be read.
        StorageFailed: the file system refused.
    """
    quota_bytes = store.state.quota_bytes()
    if quota_bytes is None:
        return None
    try:
        return trim(store)
    except StoreError as error:  # somebody keeps the store locked, or a document cannot be read
        return TrimReport(quota_bytes, store.state.stored_bytes(), obstacle=str(error))


def survey(store: Store) -> tuple[KeptShard, ...]:
    """What is known of each shard that is there and needed.

    Raises:
        StoreFormatError: a variant or a lease cannot be read.
    """
    variants, leased = store.variants(), store.leased_ids()
    used = {variant.name: store.state.last_used(variant.name) for variant in variants}
    shards = {shard.id: shard for variant in variants for shard in variant.shards}
    with store.lease(reading=True) as lease:
        workshop = Workshop(store, lease)
        return tuple(
            _kept(workshop, shard, users_of(shard.id, variants), used, is_leased=shard.id in leased)
            for shard in shards.values()
            if store.shard_path(shard.id).exists()
        )


def _kept(
    workshop: Workshop, shard: ShardRef, names: tuple[str, ...], used: Mapping[str, float], *, is_leased: bool
) -> KeptShard:
    last_used = max(used[name] for name in names)
    try:
        maker = workshop.maker(shard)
    except CannotRebuild as error:
        return KeptShard(shard, names, last_used, 0.0, f"cannot be made again ({error})")
    return KeptShard(shard, names, last_used, work_of(maker.job), _obstacle(shard, maker, is_leased=is_leased))


def _obstacle(shard: ShardRef, maker: Maker, *, is_leased: bool) -> str:
    """Why a shard that can perhaps be made again may not be dropped; "" if it may."""
    if not maker.job.conversions:
        return "of metadata"
    if maker.source.change:
        return f"cannot be made again for certain ({maker.source.change})"
    if not maker.is_certain:
        return "cannot be made again for certain (not on record to come out the same with these versions)"
    variant = maker.source.variant
    if variant is not None and shard in variant.shards:
        return f"of variant {variant.name}, which others are made from while the model file is gone"
    return IN_USE if is_leased else ""


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
