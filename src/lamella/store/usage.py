"""What the variants of a store cost together and alone: shared layers are stored once (ALCS, joint storage)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.model import METADATA_LABEL


@dataclass(frozen=True, slots=True)
class VariantUsage:
    """One variant's share.

    Attributes:
        n_bytes: of all its shards, as if it stood alone.
        own_bytes: of the shards that no other variant uses: what ``rm`` and ``gc`` would free.
        nearest: the variant that it shares most bytes with; None where it shares none.
        nearest_bytes: of the shards that those two share.
    """

    name: str
    n_bytes: int
    own_bytes: int
    nearest: str | None
    nearest_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of shards.

    Attributes:
        joint_bytes: of the union of all variants' shards.
        sum_of_variants_bytes: what the variants would take as separate files.
        unused_bytes: of shards that no variant uses and ``gc`` would remove.
    """

    joint_bytes: int
    sum_of_variants_bytes: int
    unused_bytes: int
    variants: tuple[VariantUsage, ...]


def measure_usage(variants: Sequence[Variant], stored_bytes: int) -> Usage:
    """Add up.

    Args:
        stored_bytes: of all shard files of the store, needed or not.
    """
    shards = {shard.id: shard for variant in variants for shard in variant.shards}
    users = Counter(shard_id for variant in variants for shard_id in {shard.id for shard in variant.shards})
    joint = sum(shard.n_bytes for shard in shards.values())
    return Usage(
        joint_bytes=joint,
        sum_of_variants_bytes=sum(variant.n_bytes for variant in variants),
        unused_bytes=max(0, stored_bytes - joint),
        variants=tuple(
            VariantUsage(v.name, v.n_bytes, _own_bytes(v.shards, users), *_nearest(v, variants)) for v in variants
        ),
    )


def _own_bytes(shards: Sequence[ShardRef], users: Counter[str]) -> int:
    own = {shard.id: shard.n_bytes for shard in shards if users[shard.id] == 1}
    return sum(own.values())


def _nearest(variant: Variant, variants: Sequence[Variant]) -> tuple[str | None, int]:
    shared = [(_shared_bytes(variant, other), other.name) for other in variants if other.name != variant.name]
    n_bytes, name = max(shared, key=lambda found: found[0], default=(0, ""))
    return (name, n_bytes) if n_bytes else (None, 0)


def _shared_bytes(a: Variant, b: Variant) -> int:
    """Of the shards of layers and the like; the metadata that all variants share tells nothing."""
    of_b = {shard.id for shard in b.shards}
    return sum(s.n_bytes for s in {s.id: s for s in a.shards}.values() if s.id in of_b and s.label != METADATA_LABEL)
