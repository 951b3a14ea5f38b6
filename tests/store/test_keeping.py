"""What is dropped: never too much, never what must stay, and enough wherever that is possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.artifacts import ShardRef
from lamella.core.errors import QuotaNotReached
from lamella.store.keeping import PINNED, KeptShard, TrimReport, choose

NAMES = ("a", "b", "c")
NOW = 1_000_000.0


@st.composite
def shards(draw: st.DrawFn) -> list[KeptShard]:
    n = draw(st.integers(0, 12))
    return [
        KeptShard(
            ShardRef(f"{i:064x}", f"layer {i}", draw(st.integers(1, 1000))),
            tuple(draw(st.sets(st.sampled_from(NAMES), min_size=1))),
            draw(st.floats(0, NOW + 10)),
            draw(st.floats(0, 1e6)),
            draw(st.sampled_from(["", "", "source absent"])),
        )
        for i in range(n)
    ]


@given(shards(), st.sets(st.sampled_from(NAMES)), st.integers(-10, 8000))
def test_the_choice_is_enough_and_not_more(kept: list[KeptShard], pinned: set[str], excess: int) -> None:
    choice = choose(kept, pinned=pinned, excess_bytes=excess, now=NOW)
    by_id = {shard.ref.id: shard for shard in kept}
    dropped = [by_id[ref.id] for ref in choice.dropped]
    assert not [s for s in dropped if s.obstacle or pinned & set(s.variants)]
    assert len({ref.id for ref in choice.dropped}) == len(choice.dropped)
    freed = sum(s.ref.n_bytes for s in dropped)
    assert choice.short_bytes == max(0, excess - freed)
    if dropped:
        assert freed - dropped[-1].ref.n_bytes < excess
    may_go = sum(s.ref.n_bytes for s in kept if not s.obstacle and not pinned & set(s.variants))
    assert (choice.short_bytes == 0) == (may_go >= excess)
    assert sum(choice.kept_bytes.values()) == sum(s.ref.n_bytes for s in kept) - may_go


def one(number: int, n_bytes: int = 100, last_used: float = NOW - 100, work: float = 1e4) -> KeptShard:
    return KeptShard(ShardRef(f"{number:064x}", "layer", n_bytes), ("v",), last_used, work)


@pytest.mark.parametrize(
    "first",
    [one(2, last_used=NOW - 5000), one(2, n_bytes=101), one(2, work=9e3)],
    ids=["unused for longer", "larger", "quicker to make again"],
)
def test_what_goes_first(first: KeptShard) -> None:
    for order in ([one(1), first], [first, one(1)]):
        assert choose(order, pinned=(), excess_bytes=1, now=NOW).dropped == (first.ref,)


def test_a_pin_outweighs_every_other_reason_in_the_report() -> None:
    lost = KeptShard(ShardRef("0" * 64, "layer", 7), ("v", "w"), 0, 0, "source absent")
    assert choose([lost], pinned=["w"], excess_bytes=1, now=NOW).kept_bytes == {PINNED: 7}


def test_a_quota_that_is_not_reached_says_what_is_needed_and_why() -> None:
    report = TrimReport(1000, 3000, kept_bytes={PINNED: 2000, "cannot be made again (gone)": 900})
    assert report.short_bytes == 2000
    with pytest.raises(
        QuotaNotReached, match=r"takes 2\.93 KiB, its quota is 0\.98 KiB.*1\.95 KiB pinned, 900 B cannot"
    ):
        report.check_reached()
    TrimReport(3000, 3000).check_reached()
