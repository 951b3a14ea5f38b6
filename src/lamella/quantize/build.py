"""``build_variant``: a plan and a model file become a variant in a store, on all cores.

    source = read_model(Path("model-f16.gguf"))
    store = Store.create(Path("model.store"), source.spec.identity)
    report = build_variant(source, plan, store, "int8")

Shards whose recipe is known are not made again, and those that another builder is making are waited for.  The rest is
made (``making``).

Stopping at any point, by ``should_stop``, Ctrl-C or a crash, leaves a valid store; finished shards are kept and the
next build goes on from there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lamella.core.artifacts import Plan, ShardRef, Variant
from lamella.core.cores import usable_cores
from lamella.core.errors import ArtifactError, StorageFailed, UnknownVariant
from lamella.core.units import format_bytes
from lamella.llama.blas import one_blas_thread
from lamella.llama.gguf import ModelFile
from lamella.llama.imatrix import ImportanceMatrix, serialise_imatrix
from lamella.quantize.making import OnProgress, Site, Watch, make_shards
from lamella.quantize.recipe import ShardJob, copy_jobs, importance_hash, shard_jobs, tuned_on
from lamella.quantize.tensor import Conversion
from lamella.quantize.tuned import BATCH_BYTES, Tuning
from lamella.store.files import free_bytes
from lamella.store.keeping import TrimReport
from lamella.store.layout import check_variant_name
from lamella.store.leases import Lease
from lamella.store.sources import IMPORTANCE_SETTING, SourceFile, SourceNote
from lamella.store.store import Store
from lamella.store.variants import variant_exists

TUNING_SETTING = "tuned_on"
"""Setting of a variant's plan: SHA-256 of the text that its rounding was tuned on, and how it was read."""

ASK_AGAIN_S = 0.05
"""How often a builder looks whether another one has made the shards that it waits for."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        n_reused: shards that were in the store already, or that another builder made meanwhile.
        written_bytes: of the shards that this one made.
        seconds: from call to variant.
        trimmed: what went to keep the store's quota afterwards; None if it has none.
    """

    variant: Variant
    n_shards: int
    n_reused: int
    written_bytes: int
    seconds: float
    trimmed: TrimReport | None = None


def build_variant(
    source: ModelFile,
    plan: Plan,
    store: Store,
    name: str,
    *,
    importance: ImportanceMatrix | None = None,
    tuning: Tuning | None = None,
    replace: bool = False,
    n_threads: int | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BuildReport:
    """Make the variant ``name`` of ``source`` as ``plan`` says.

    Args:
        importance: what ggml's rounding weighs columns by; if it is used, the variant's plan says which it was.
        tuning: instead of it, what rounding makes up for its errors with; the plan says on what it was tuned.
        replace: take the place of a variant of that name with other contents, once all its shards are there.
        n_threads: threads that convert; None for the cores this process may use.
        on_progress, should_stop: called from this thread, before and after each chunk of rows.

    Raises:
        InvalidRequest: the name cannot name a variant; an importance matrix or tuning for a scheme other than
            ``block``, or both; a model file whose path is not UTF-8.
        ArtifactError: plan or importance matrix are for another model.
        UnsupportedTensor, InvalidWeights: a tensor that cannot be converted, by name.
        StoreError: the store holds another model, or a variant of that name with other contents.
        StorageFailed: the file system refused; no partial file is left.
        BuildStopped: ``should_stop`` said so.
    """
    check_variant_name(name)
    store.check_same_model(source.spec.identity)
    jobs = shard_jobs(source, plan, importance, tuning)
    plan = dataclasses.replace(plan, settings={**plan.settings, **_rounding_settings(jobs)})
    if not replace:
        _refuse_taken_name(source, store, name, jobs, importance, tuning)
    with store.lease() as lease:
        if importance is not None and (used := importance_hash(jobs)):
            lease.protect([used])  # no variant names it yet
            store.sources.keep_importance(used, serialise_imatrix(importance))
        order = _Order(source, plan, name, jobs, tuning=tuning, replace=replace)
        return _make_variant(store, lease, order, n_threads, on_progress, should_stop)


def copy_variant(
    source: ModelFile,
    plan: Plan,
    store: Store,
    lease: Lease,
    name: str,
    *,
    known: Mapping[int, ShardRef],
    n_threads: int | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BuildReport:
    """Make the variant ``name`` of a source's tensors as they are; for the rest see ``build_variant``.

    The caller has seen to it that source and store are one model.

    Args:
        lease: on the shards in ``known``; those that are made are added to it.
        plan: what the variant's document says about its types; nothing is converted.
        known: shards to take from the store instead of making them, by number.
    """
    order = _Order(source, plan, name, copy_jobs(source), known)
    return _make_variant(store, lease, order, n_threads, on_progress, should_stop)


def note_source(store: Store, source: ModelFile) -> None:
    """Remember where the model stands, so that shards can be made from it again.

    Raises:
        InvalidRequest: a path that is not UTF-8.
        StorageFailed: the file system refused.
    """
    files = tuple(SourceFile.of(path) for path in source.paths)
    types = tuple((tensor.name, tensor.type_name) for tensor in source.spec.tensors)
    store.sources.note(SourceNote(source.spec.identity, files, types))


def make_again(
    source: ModelFile,
    store: Store,
    lease: Lease,
    job: ShardJob,
    shard: ShardRef,
    *,
    n_threads: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Make a shard that the store once had, or wait for somebody who is making it; it stays under the lease.

    Args:
        n_threads, should_stop: see ``build_variant``.

    Raises:
        ShardDamaged: it came out otherwise; nothing was stored.
        ModelError, StorageFailed, BuildStopped: see ``build_variant``.
    """
    watch = Watch(1, [job], None, should_stop)
    is_missing = store.quick_damage(shard) is not None
    lease.protect([shard.id])
    with store.claims() as claims:
        while not claims.take(job.recipe_id):
            watch.waits_for(job)
            time.sleep(ASK_AGAIN_S)
        if is_missing and store.quick_damage(shard) is None:
            return  # somebody else made it
        site = Site(store, lease, claims)
        threads = n_threads or usable_cores()
        make_shards(source, site, [job], threads, watch, {job.group.number: shard.id})


@dataclass(frozen=True, slots=True)
class _Order:
    """A variant to be made; for ``tuning`` and ``replace`` see ``build_variant``, for ``known`` ``copy_variant``."""

    source: ModelFile
    plan: Plan
    name: str
    jobs: Sequence[ShardJob]
    known: Mapping[int, ShardRef] = field(default_factory=dict)
    tuning: Tuning | None = None
    replace: bool = False


def _make_variant(
    store: Store,
    lease: Lease,
    order: _Order,
    n_threads: int | None,
    on_progress: OnProgress | None,
    should_stop: Callable[[], bool] | None,
) -> BuildReport:
    """Make the shards that neither the store has nor another builder makes, and the variant of all of them."""
    started, jobs = time.perf_counter(), order.jobs
    note_source(store, order.source)
    shards = {job.group.number: ref for job in jobs if (ref := lease.recall(job.recipe_id))} | dict(order.known)
    missing = [job for job in jobs if job.group.number not in shards]
    watch = Watch(len(jobs), missing, on_progress, should_stop)
    made: dict[int, ShardRef] = {}
    with store.claims() as claims:
        site = Site(store, lease, claims)
        while missing := [job for job in missing if job.group.number not in shards]:
            found, ours = _share_out(site, missing)
            for job in missing:
                if job.group.number in found:
                    watch.found(job)
            new = _make_ours(site, order, ours, n_threads or usable_cores(), watch)
            made |= new
            shards |= found | new
            if not found and not new:
                watch.waits_for(missing[0])
                time.sleep(ASK_AGAIN_S)
    ordered = [shards[job.group.number] for job in jobs]
    variant = store.add_variant(order.name, order.plan, ordered, replace=order.replace)
    written_bytes = sum(ref.n_bytes for ref in made.values())
    return BuildReport(variant, len(jobs), len(jobs) - len(made), written_bytes, time.perf_counter() - started)


def _share_out(site: Site, missing: Sequence[ShardJob]) -> tuple[dict[int, ShardRef], list[ShardJob]]:
    """Shards that came meanwhile, by number, and the jobs that are ours now; another builder is at the others.

    All that is free is claimed at once and made before anything is waited for, so no two builders wait for each other.
    """
    found: dict[int, ShardRef] = {}
    ours: list[ShardJob] = []
    for job in missing:
        ref = site.lease.recall(job.recipe_id)
        if ref is None and site.claims.take(job.recipe_id):
            ref = site.lease.recall(job.recipe_id)  # it may have come between the look and the claim
            if ref is None:
                ours.append(job)
            else:
                site.claims.release(job.recipe_id)
        if ref is not None:
            found[job.group.number] = ref
    return found, ours


def _make_ours(
    site: Site, order: _Order, jobs: Sequence[ShardJob], n_threads: int, watch: Watch
) -> dict[int, ShardRef]:
    """Make claimed shards; returns them by number."""
    _check_space(site.store, jobs)
    made: dict[int, ShardRef] = {}
    for batch in _batches(jobs):
        if order.tuning is not None:
            watch.check()  # gathering covariances takes long, and asks nobody
        ready = _with_feedback(batch, order.tuning)
        with one_blas_thread():
            made |= make_shards(order.source, site, ready, n_threads, watch)
    return made


def _rounding_settings(jobs: Sequence[ShardJob]) -> dict[str, str]:
    """What a plan's settings say of the data that rounding used."""
    used = {IMPORTANCE_SETTING: importance_hash(jobs), TUNING_SETTING: tuned_on(jobs)}
    return {setting: identity for setting, identity in used.items() if identity}


def _refuse_taken_name(
    source: ModelFile,
    store: Store,
    name: str,
    jobs: Sequence[ShardJob],
    importance: ImportanceMatrix | None,
    tuning: Tuning | None,
) -> None:
    """Say at once, not after an hour of work, that the name is taken by other contents."""
    try:
        found = store.variant(name)
    except UnknownVariant:
        return
    used = _rounding_settings(jobs)
    if used != {s: found.plan.settings[s] for s in (IMPORTANCE_SETTING, TUNING_SETTING) if s in found.plan.settings}:
        raise variant_exists(store.path, found)
    importance = importance if IMPORTANCE_SETTING in used else None  # the found plan may be of a scheme that takes none
    tuning = tuning if TUNING_SETTING in used else None
    try:
        found_jobs = shard_jobs(source, found.plan, importance, tuning)
    except ArtifactError:  # an imported variant: its plan is for the file that it came from
        raise variant_exists(store.path, found) from None
    if [job.recipe_id for job in found_jobs] != [job.recipe_id for job in jobs]:
        raise variant_exists(store.path, found)


def _check_space(store: Store, missing: Sequence[ShardJob]) -> None:
    needed, free = sum(job.n_bytes for job in missing), free_bytes(store.path)
    if needed > free:
        raise StorageFailed(
            f"cannot build in {store.path}: {len(missing)} shards need {format_bytes(needed)}, "
            f"{format_bytes(free)} are free"
        )


def _batches(jobs: Sequence[ShardJob]) -> Iterator[list[ShardJob]]:
    """Jobs whose covariances fit ``BATCH_BYTES`` together, at least one; all jobs, where nothing is tuned."""
    batch: list[ShardJob] = []
    n_bytes = 0
    for job in jobs:
        more = sum(4 * c.source.spec.row_length**2 for c in job.conversions if c.tuned_on)
        if batch and more and n_bytes + more > BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
        batch.append(job)
        n_bytes += more
    if batch:
        yield batch


def _with_feedback(jobs: Sequence[ShardJob], tuning: Tuning | None) -> Sequence[ShardJob]:
    """The same jobs, with what their rounding is tuned with."""
    layers = {c.source.spec.layer for job in jobs for c in job.conversions if c.tuned_on}
    if tuning is None or not layers:
        return jobs
    feedbacks = tuning.feedbacks(sorted(layer for layer in layers if layer is not None))

    def ready(conversion: Conversion) -> Conversion:
        found = feedbacks.get(conversion.source.spec.name) if conversion.tuned_on else None
        return dataclasses.replace(conversion, feedback=found)

    return [dataclasses.replace(job, conversions=tuple(map(ready, job.conversions))) for job in jobs]
