"""What work that ended early left in a store: nothing is damaged by it, and ``gc`` frees its space."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lamella.store.files import has_living_owner, stored_bytes
from lamella.store.layout import CLAIM_SUFFIX, Layout
from lamella.store.leases import dead_leases


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is there and serves nobody now.

    Attributes:
        n_files, file_bytes: files and folders in ``incoming/`` whose writer is gone.
        n_leases: leases whose owner is gone.
        n_shards, shard_bytes: shards that no variant and nobody at work uses; a build that wants them finds them.
    """

    n_files: int
    file_bytes: int
    n_leases: int
    n_shards: int
    shard_bytes: int

    @property
    def is_interrupted(self) -> bool:
        """Whether somebody was interrupted, rather than only variants removed."""
        return self.n_files + self.n_leases > 0


def find_leftovers(layout: Layout, needed: Collection[str] | None) -> Leftovers:
    """Look, and change nothing.

    Args:
        needed: ids of the shards of all variants and living leases; None if not known, then no shard is left over.
    """
    incoming = list(layout.incoming.iterdir()) if layout.incoming.is_dir() else []
    dead = [path for path in incoming if path.suffix != CLAIM_SUFFIX and not has_living_owner(path)]
    unused = [path for shard_id, path in layout.shard_files() if needed is not None and shard_id not in needed]
    return Leftovers(
        n_files=len(dead),
        file_bytes=sum(map(stored_bytes, dead)),
        n_leases=len(dead_leases(layout)),
        n_shards=len(unused),
        shard_bytes=sum(map(stored_bytes, unused)),
    )
