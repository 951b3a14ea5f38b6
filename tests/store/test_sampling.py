"""Verifying for a limited time, one variant, or on so many threads; what was not hashed is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.store import verify
from lamella.store.layout import Layout
from lamella.store.store import Store
from lamella.store.verify import Facts, Sample, hash_files
from tests.store.conftest import MakeVariant, add_shard

N = 20


@pytest.fixture(autouse=True)
def twenty_shards(make_variant: MakeVariant) -> None:
    make_variant("v", *(f"shard {i:02}".encode() for i in range(N)))


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second each time somebody looks."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def sampled(store: Store, seconds: float, seed: int | None) -> verify.VerifyReport:
    facts = Facts(store.variants(), {}, (), (), ())
    return verify.verify(Layout(store.path), facts, Sample(seconds, seed=seed, n_jobs=1), clock=ticking())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_time_ends_hashing_and_what_remains_is_said(store: Store) -> None:
    report = sampled(store, 9, seed=0)  # the clock is asked at the start, before each shard, and before its one piece
    assert report.ok
    assert (report.n_shards, report.n_left) == (N, N - 4)
    assert (report.n_bytes, report.left_bytes) == (4 * 8, 16 * 8)
    assert report.share == 0.2


def test_enough_time_reaches_everything(store: Store) -> None:
    report = sampled(store, 1000, seed=0)
    assert (report.n_left, report.share) == (0, 1.0)


def test_a_sample_is_random_and_a_seed_repeats_it(store: Store) -> None:
    for shard in store.variant("v").shards:
        flip(store.shard_path(shard.id))
    found = [[d.id for d in sampled(store, 9, seed).damaged] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert len(found[2]) == 4


def test_missing_and_cut_off_shards_are_found_without_time(store: Store) -> None:
    lost, cut = (store.shard_path(s.id) for s in store.variant("v").shards[:2])
    lost.unlink()
    cut.chmod(0o644)
    cut.write_bytes(b"shard")
    report = sampled(store, 0.5, seed=0)
    assert {d.reason for d in report.damaged} == {"missing", "it has 5 bytes instead of 8"}
    assert (report.n_bytes, report.n_left) == (0, N - 2)


def test_one_variant_alone(store: Store, make_variant: MakeVariant) -> None:
    other = make_variant("w", b"shard 00", b"its own shard")
    flip(store.shard_path(add_shard(store, "layer 0", b"of no variant").id))
    flip(store.shard_path(store.variant("v").shards[5].id))
    assert len(store.verify().damaged) == 2
    report = store.verify(sample=Sample(variant="w"))
    assert report.ok
    assert (report.n_shards, report.n_bytes) == (2, other.n_bytes)
    with pytest.raises(UnknownVariant, match="there are: v, w"):
        store.verify(sample=Sample(variant="x"))


def test_hashing_begins_in_the_order_given_on_any_number_of_threads(store: Store) -> None:
    files = {s.id: store.shard_path(s.id) for s in store.variant("v").shards}
    for n_jobs in (1, 3):
        assert hash_files(files, n_jobs=n_jobs) == {i: i for i in files}


def test_the_largest_go_first(store: Store, make_variant: MakeVariant) -> None:
    make_variant("w", b"x" * 10, b"x" * 3000, b"x" * 200)
    seen: list[int] = []
    store.verify(seen.append, Sample(n_jobs=1))
    assert seen == sorted(seen, reverse=True)


def test_requests_without_a_meaning_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one thread, not 0"):
        Sample(n_jobs=0)
    with pytest.raises(InvalidRequest, match="without a time limit"):
        Sample(seed=1)
