"""Which shards to drop so that a store keeps its quota: a pure function of what is known of each.

    choice = choose(shards, pinned={"large"}, excess_bytes=stored - quota, now=time.time())
    choice.dropped, choice.short_bytes

A dropped shard is got back when its variant is loaded.  So what goes first is what has not been used for long, is
large, and is quickly got back:

    gain = seconds since its last use  x  bytes  /  work

taken largest first until the excess is gone.  Seconds count whole and from 1, so that of shards in use just now the
larger and easier one goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lamella.core.artifacts import ShardRef
from lamella.core.errors import QuotaNotReached
from lamella.core.units import format_bytes

PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class KeptShard:
    """A shard that is in the store and that variants need.

    Attributes:
        variants: names of those variants.
        last_used: when one of them was used last, in seconds since 1970.
        work: what getting it back costs, in weights converted to an easy type (``quantize.trimming.work_of``).
        obstacle: why it cannot be got back for certain; "" if it can.
    """

    ref: ShardRef
    variants: tuple[str, ...]
    last_used: float
    work: float
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to drop.

    Attributes:
        dropped: in the order of their gain.
        short_bytes: what remains above the quota when all that may go is gone; 0 if the quota holds.
        kept_bytes: reason -> bytes of shards that may not be dropped, largest first.
    """

    dropped: tuple[ShardRef, ...]
    short_bytes: int
    kept_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What a trim did.

    Attributes:
        quota_bytes: what was to be kept.
        stored_bytes: of all files of the store, afterwards.
        garbage_bytes: of shards that no variant needed, and other rubbish.
        dropped: shards that can be got back, first dropped first.
        kept_bytes: reason -> bytes of shards that may not be dropped.
        obstacle: why nothing could be done; "" if something could.
    """

    quota_bytes: int
    stored_bytes: int
    garbage_bytes: int = 0
    dropped: tuple[ShardRef, ...] = ()
    kept_bytes: Mapping[str, int] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def dropped_bytes(self) -> int:
        return sum(shard.n_bytes for shard in self.dropped)

    @property
    def short_bytes(self) -> int:
        """How much too large the store is still."""
        return max(0, self.stored_bytes - self.quota_bytes)

    def check_reached(self) -> None:
        """Refuse to call it done if it is not.

        Raises:
            QuotaNotReached: says what is needed and why.
        """
        if self.short_bytes:
            kept = ", ".join(f"{format_bytes(n)} {reason}" for reason, n in self.kept_bytes.items())
            raise QuotaNotReached(
                f"the store takes {format_bytes(self.stored_bytes)}, its quota is {format_bytes(self.quota_bytes)}, "
                f"and no more may be dropped (what stays: {kept or 'no shard'}); raise the quota, or unpin or remove "
                "variants"
            )


def choose(shards: Sequence[KeptShard], *, pinned: Collection[str], excess_bytes: int, now: float) -> Choice:
    """Drop just so many that ``excess_bytes`` are freed.

    Args:
        pinned: names of variants whose shards stay.
        now: in seconds since 1970.
    """
    reasons = [PINNED if not set(pinned).isdisjoint(s.variants) else s.obstacle for s in shards]
    candidates = [shard for shard, reason in zip(shards, reasons, strict=True) if not reason]
    left, dropped = excess_bytes, []
    for shard in sorted(candidates, key=lambda s: (-_gain(s, now), s.ref.id)):
        if left <= 0:
            break
        dropped.append(shard.ref)
        left -= shard.ref.n_bytes
    kept: Counter[str] = Counter()
    for shard, reason in zip(shards, reasons, strict=True):
        if reason:
            kept[reason] += shard.ref.n_bytes
    return Choice(tuple(dropped), max(0, left), dict(kept.most_common()))


def _gain(shard: KeptShard, now: float) -> float:
    seconds = max(1, int(now - shard.last_used))
    return seconds * shard.ref.n_bytes / max(shard.work, 1.0)
