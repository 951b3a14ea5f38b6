"""Does every shard hash to its name?  ``sha256sum shards/*/*.gguf`` answers the same; this one uses all cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import StorageFailed
from lamella.store.files import pieces, stored_bytes
from lamella.store.layout import Layout, link_name, link_target

OnProgress = Callable[[int], None]
"""Called with the number of bytes just hashed, from one thread at a time."""


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
    """

    n_shards: int
    n_bytes: int
    damaged: tuple[DamagedShard, ...]
    broken_links: tuple[str, ...]
    unreadable_variants: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.damaged and not self.broken_links and not self.unreadable_variants


def verify(
    layout: Layout,
    variants: Sequence[Variant],
    unreadable: Mapping[str, str],
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Hash every shard of the store and compare; check that every variant's shards and links are there.

    The caller holds a lease on the shards of ``variants``; one of no variant may go meanwhile.

    Args:
        unreadable: name -> reason, of the variants that cannot be read.

    Raises:
        StorageFailed: a shard cannot be read.
    """
    refs = {shard.id: shard for variant in variants for shard in variant.shards}
    wanted = {**{shard_id: layout.shard(shard_id) for shard_id in refs}, **dict(layout.shard_files())}
    reasons = find_damage(wanted, on_progress)
    damaged = tuple(
        DamagedShard(i, refs[i].label if i in refs else "", users_of(i, variants), reason)
        for i, reason in sorted(reasons.items())
        if i in refs or wanted[i].exists()
    )
    n_bytes = sum(map(stored_bytes, wanted.values()))
    reported = tuple(f"{name}: {reason}" for name, reason in unreadable.items())
    return VerifyReport(len(wanted), n_bytes, damaged, _broken_links(layout, variants), reported)


def find_damage(shards: Mapping[str, Path], on_progress: OnProgress | None = None) -> dict[str, str]:
    """Which of the files (id -> path) do not hash to their id, and why."""
    report = _one_at_a_time(on_progress or (lambda _: None))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda shard_id: _damage(shard_id, shards[shard_id], report), shards)
        return {shard_id: reason for shard_id, reason in zip(shards, found, strict=True) if reason}


def users_of(shard_id: str, variants: Sequence[Variant]) -> tuple[str, ...]:
    return tuple(v.name for v in variants if any(shard.id == shard_id for shard in v.shards))


def describe(shard: ShardRef, users: Sequence[str], reason: str) -> str:
    return f"shard {shard.id} ({shard.label} of {', '.join(users)}) is damaged: {reason}"


def _damage(shard_id: str, path: Path, on_progress: OnProgress) -> str | None:
    """Why the file is not the shard, or None."""
    try:
        found = _sha256(path, on_progress)
    except StorageFailed:
        if path.exists():
            raise
        return "missing"
    return None if found == shard_id else f"its SHA-256 is {found}"


def _sha256(path: Path, on_progress: OnProgress) -> str:
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
        on_progress(len(piece))
    return digest.hexdigest()


def _one_at_a_time(on_progress: OnProgress) -> OnProgress:
    lock = threading.Lock()

    def report(n_bytes: int) -> None:
        with lock:
            on_progress(n_bytes)

    return report


def _broken_links(layout: Layout, variants: Sequence[Variant]) -> tuple[str, ...]:
    broken = []
    for variant in variants:
        for number, shard in enumerate(variant.shards):
            link = layout.variant(variant.name) / link_name(variant.name, number, len(variant.shards))
            if not link.is_symlink() or str(link.readlink()) != link_target(shard.id):
                broken.append(link)
    return tuple(f"{link.parent.name}/{link.name}" for link in broken if link.parent.exists())  # else removed meanwhile
