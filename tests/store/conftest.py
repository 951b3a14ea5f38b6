"""A store of made-up shards: the store does not look into them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.core.artifacts import LayerPlan, MemoryNeed, Plan, ShardRef, Variant
from lamella.core.model import ModelIdentity
from lamella.store.leases import Lease
from lamella.store.store import Store

IDENTITY = ModelIdentity("llama", "tiny", structure="5" * 64, weights="9" * 64)
PLAN = Plan(
    policy="uniform",
    model=IDENTITY,
    scheme="block",
    settings={},
    layers=[LayerPlan(0, "int8", 0)],
    tensors={"blk.0.attn_q.weight": "Q8_0"},
    bits_per_weight=8.5,
    average_bits=8.0,
    bytes=MemoryNeed(0, 0, 0, 0),
)

MakeVariant = Callable[..., Variant]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", IDENTITY)


@pytest.fixture
def make_variant(store: Store) -> MakeVariant:
    """``make_variant("v", b"shard 0", b"shard 1")`` writes the shards and the variant."""

    def make(name: str, *contents: bytes) -> Variant:
        with store.lease() as lease:
            refs = [write_shard(lease, f"layer {i}", data) for i, data in enumerate(contents)]
            return store.add_variant(name, PLAN, refs)

    return make


def add_shard(store: Store, label: str, data: bytes) -> ShardRef:
    """A shard that nobody holds any more."""
    with store.lease() as lease:
        return write_shard(lease, label, data)


def write_shard(lease: Lease, label: str, data: bytes) -> ShardRef:
    with contextlib.closing(lease.new_shard(label, len(data))) as writer:
        writer.write(data)
        return writer.commit()
