"""A variant on its way into a running model, and what the change to it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lamella.core.artifacts import Variant
from lamella.llama.weights import WeightState
from lamella.store.variants import Version


class Closable(Protocol):
    """What is let go with ``close``: a lease, or several."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PreparedVariant:
    """A variant whose shards are in memory, ready to be switched to.

    Attributes:
        variant: the variant.
        version: of the variant's document when it was prepared; it may have been replaced since.
        prompt, token: where each weight points in the two phases of a generation.
        lease: keeps its shards in the store as long as they are open here.
        seconds: what preparing took: opening, reading pages in, repacking.
        is_mixed: it is none of the store but what runs in the middle of a change shard by shard; its name is that of
            both variants with ``>`` between, which no variant of a store can have.
    """

    variant: Variant
    version: Version
    prompt: Mapping[str, WeightState]
    token: Mapping[str, WeightState]
    lease: Closable
    seconds: float
    is_mixed: bool = False

    @property
    def shard_ids(self) -> list[str]:
        """In order."""
        return [shard.id for shard in self.variant.shards]


@dataclass(frozen=True, slots=True)
class StagedVariant:
    """A variant whose files are there, but whose shards do not fit into memory beside those that are in use.

    It can be switched to shard by shard (``LiveVariants.begin``).

    Attributes:
        paths: of its shards, in order.
        variant, version, lease, seconds: as of ``PreparedVariant``.
    """

    variant: Variant
    version: Version
    paths: tuple[Path, ...]
    lease: Closable
    seconds: float

    @property
    def shard_ids(self) -> list[str]:
        """In order."""
        return [shard.id for shard in self.variant.shards]


Ready = PreparedVariant | StagedVariant


@dataclass(frozen=True, slots=True)
class SwitchReport:
    """What a switch did and cost.

    Attributes:
        before, after: names of the variants; ``before`` is empty for the first one.
        n_weights: tensors that were pointed elsewhere.
        n_shards: shards that the two variants do not share.
        switch_seconds: from the first pointer to the last; shard by shard, the time in which nothing could be computed.
        prepare_seconds: what preparing took; 0 if the variant was warm.
        mapped_bytes: size of the pages that are mapped now (page cache, shared between processes).
        repacked_bytes: private memory of repacked copies.
        n_steps: moments between decodes that it took: 1, or one for each shard where the memory ceiling leaves no room
            for both variants.  In between the model ran at a mixture of both.
        longest_seconds: of one of these moments.
        peak_bytes: the most memory that weights took meanwhile, mapped and repacked.
    """

    before: str
    after: str
    n_weights: int
    n_shards: int
    switch_seconds: float
    prepare_seconds: float
    mapped_bytes: int
    repacked_bytes: int
    n_steps: int
    longest_seconds: float
    peak_bytes: int
