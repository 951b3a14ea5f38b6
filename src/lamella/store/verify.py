"""Does every shard hash to its name?  ``sha256sum shards/*/*.gguf`` answers the same; this one uses all cores.

    report = store.verify()                                       # every byte
    report = store.verify(sample=Sample(within_seconds=10))       # as much as ten seconds allow, in random order

Whether a shard is there in its full size is seen at once, for all of them.  What is left is hashed: ``hashlib`` and
``read`` release the interpreter lock, so each core hashes a shard of its own, from one buffer that stays in its cache.
The largest go first, so that the cores finish together; a sample goes in random order instead, so that running it often
reaches every shard.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.cores import usable_cores
from lamella.core.errors import InvalidRequest, StorageFailed
from lamella.store.files import pieces, stored_bytes
from lamella.store.layout import Layout

OnProgress = Callable[[int], None]
"""Called with the number of bytes just hashed, from one thread at a time."""

MISSING = "missing"
DROPPED = "dropped to keep the quota"


@dataclass(frozen=True, slots=True)
class Sample:
    """What to look at.

    Attributes:
        within_seconds: stop hashing after that long; None: hash everything.
        variant: look at this variant's shards and links only; None: at the whole store.
        seed: of the order of a sample; None: another order each time.
        n_jobs: threads that hash; None: one for each core that this process may use.
    """

    within_seconds: float | None = None
    variant: str | None = None
    seed: int | None = None
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise InvalidRequest(f"hashing takes at least one thread, not {self.n_jobs}")
        if self.seed is not None and self.within_seconds is None:
            raise InvalidRequest("a seed orders a sample; without a time limit everything is hashed")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says of itself.

    Attributes:
        variants: those that can be read.
        unreadable_variants: name -> reason, of the others.
        dropped: ids of shards that were dropped to keep the quota.
        unreadable_notes: why what is noted about quota, pins, dropped shards, sources and origins cannot be read.
        broken_links: see ``VerifyReport``; of the variants that are looked at.
    """

    variants: Sequence[Variant]
    unreadable_variants: Mapping[str, str]
    dropped: Collection[str]
    unreadable_notes: Sequence[str]
    broken_links: Sequence[str]


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard that cannot be used.

    Attributes:
        id: what it should hash to.
        label: which part of the model; empty if no variant uses it.
        variants: names of the variants that need it.
        reason: ``missing``, or what was found instead.
    """

    id: str
    label: str
    variants: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found.

    Attributes:
        n_shards: shards looked for: those there are and those that variants name.
        n_bytes: hashed.
        damaged: shards with other contents than their name says, or missing.
        broken_links: links in variant folders that do not lead to the variant's shard, as ``NAME/LINK``; stock
            llama.cpp would fail on them, Lamella does not use them.
        unreadable_variants: variants whose document cannot be read, as ``NAME: reason``; which shards they need is
            not known.
        dropped: labels and users of shards that are not there because of the quota; nothing is wrong with that.
        unreadable_notes: other documents of the store that cannot be read, with the cure.
        n_left, left_bytes: shards that the time did not suffice for; they are there in full size.
    """

    n_shards: int
    n_bytes: int
    damaged: tuple[DamagedShard, ...]
    broken_links: tuple[str, ...]
    unreadable_variants: tuple[str, ...]
    dropped: tuple[DamagedShard, ...] = ()
    unreadable_notes: tuple[str, ...] = ()
    n_left: int = 0
    left_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Nothing wrong was found in what was looked at."""
        return not (self.damaged or self.broken_links or self.unreadable_variants or self.unreadable_notes)

    @property
    def share(self) -> float:
        """Hashed bytes, of all bytes of whole shards; 1 where there are none."""
        total = self.n_bytes + self.left_bytes
        return self.n_bytes / total if total else 1.0


def verify(
    layout: Layout,
    facts: Facts,
    sample: Sample,
    on_progress: OnProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> VerifyReport:
    """Hash shards of the store and compare; check that variants' shards and links are there.

    The caller holds a lease on the shards of ``facts.variants``; one of no variant may go meanwhile.

    Args:
        clock: seconds that only go forward.

    Raises:
        StorageFailed: a shard cannot be read.
    """
    ends = None if sample.within_seconds is None else clock() + sample.within_seconds
    variants = [v for v in facts.variants if sample.variant in (None, v.name)]
    refs = {shard.id: shard for variant in variants for shard in variant.shards}
    files = dict(layout.shard_files())
    wanted = set(refs) | (set(files) if sample.variant is None else set())
    sizes = {i: stored_bytes(files[i]) for i in wanted if i in files}
    reasons = {i: reason for i in wanted if (reason := _quick_damage(i, sizes, refs, facts.dropped))}
    order = _order([i for i in wanted if i not in reasons], sizes, sample)
    hashed = hash_files({i: files[i] for i in order}, on_progress, n_jobs=sample.n_jobs, is_over=_over(ends, clock))
    reasons |= {i: f"its SHA-256 is {found}" for i, found in hashed.items() if found != i}
    gone = {i for i in order if i not in hashed and not files[i].exists()}
    reasons |= dict.fromkeys(gone & refs.keys(), MISSING)
    wanted -= gone - refs.keys()  # gc took them: no variant needs them

    def described(ids: Collection[str]) -> tuple[DamagedShard, ...]:
        return tuple(
            DamagedShard(i, refs[i].label if i in refs else "", users_of(i, facts.variants), reasons[i])
            for i in sorted(ids)
        )

    left = [i for i in order if i not in hashed and i not in gone]
    return VerifyReport(
        n_shards=len(wanted),
        n_bytes=sum(sizes[i] for i in hashed),
        damaged=described([i for i, reason in reasons.items() if reason != DROPPED]),
        broken_links=tuple(facts.broken_links),
        unreadable_variants=tuple(
            f"{name}: {reason}" for name, reason in facts.unreadable_variants.items() if sample.variant in (None, name)
        ),
        dropped=described([i for i, reason in reasons.items() if reason == DROPPED]),
        unreadable_notes=tuple(facts.unreadable_notes),
        n_left=len(left),
        left_bytes=sum(sizes[i] for i in left),
    )


def _quick_damage(
    shard_id: str, sizes: Mapping[str, int], refs: Mapping[str, ShardRef], dropped: Collection[str]
) -> str | None:
    """What can be said without reading the shard."""
    if shard_id not in sizes:
        return DROPPED if shard_id in dropped else MISSING
    if shard_id in refs and sizes[shard_id] != refs[shard_id].n_bytes:
        return f"it has {sizes[shard_id]} bytes instead of {refs[shard_id].n_bytes}"
    return None


def _order(shard_ids: Sequence[str], sizes: Mapping[str, int], sample: Sample) -> list[str]:
    """Which to hash first."""
    if sample.within_seconds is None:
        return sorted(shard_ids, key=lambda i: (-sizes[i], i))
    ordered = sorted(shard_ids)
    random.Random(sample.seed).shuffle(ordered)
    return ordered


def _over(ends: float | None, clock: Callable[[], float]) -> Callable[[], bool]:
    return (lambda: False) if ends is None else (lambda: clock() >= ends)


def find_damage(shards: Mapping[str, Path], on_progress: OnProgress | None = None) -> dict[str, str]:
    """Which of the files (id -> path) do not hash to their id, and why."""
    hashed = hash_files(shards, on_progress)
    missing = {i: MISSING for i in shards if i not in hashed}
    return missing | {i: f"its SHA-256 is {found}" for i, found in hashed.items() if found != i}


def hash_files(
    files: Mapping[str, Path],
    on_progress: OnProgress | None = None,
    *,
    n_jobs: int | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """SHA-256 of each file, begun in the order given; without those that time did not suffice for, or that are gone.

    Args:
        n_jobs: threads; None: one for each core that this process may use.
        is_over: asked before each file and each piece.
    """
    report = _one_at_a_time(on_progress or (lambda _: None))
    with ThreadPoolExecutor(n_jobs or usable_cores()) as pool:
        found = pool.map(lambda path: _sha256_if_there(path, report, is_over), files.values())
        return {key: digest for key, digest in zip(files, found, strict=True) if digest is not None}


def users_of(shard_id: str, variants: Sequence[Variant]) -> tuple[str, ...]:
    """Names of the variants that have the shard."""
    return tuple(v.name for v in variants if any(shard.id == shard_id for shard in v.shards))


def describe(shard: ShardRef, users: Sequence[str], reason: str) -> str:
    """What is wrong with a shard, for people."""
    state = f"was {reason}" if reason == DROPPED else f"is damaged: {reason}"
    return f"shard {shard.id} ({shard.label} of {', '.join(users)}) {state}"


def _sha256_if_there(path: Path, on_progress: OnProgress, is_over: Callable[[], bool]) -> str | None:
    try:
        return _sha256(path, on_progress, is_over)
    except StorageFailed:
        if path.exists():
            raise
        return None


def _sha256(path: Path, on_progress: OnProgress, is_over: Callable[[], bool]) -> str | None:
    """Of the whole file; None if time ran out before its end."""
    if is_over():  # before the file is opened: many may be left
        return None
    digest = hashlib.sha256()
    for piece in pieces(path):
        if is_over():
            return None
        digest.update(piece)
        on_progress(len(piece))
    return digest.hexdigest()


def _one_at_a_time(on_progress: OnProgress) -> OnProgress:
    lock = threading.Lock()

    def report(n_bytes: int) -> None:
        with lock:
            on_progress(n_bytes)

    return report
