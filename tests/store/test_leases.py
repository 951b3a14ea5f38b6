"""What a living lease holds is never collected, whatever else happens in the store; what a dead one held is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.core.errors import ShardDamaged, StorageFailed, StoreBusy, StoreFormatError, UnknownVariant
from lamella.store import locks
from lamella.store.files import IncomingFile, incoming_folder, remove_dead, take_over
from lamella.store.leases import leased_ids
from lamella.store.store import Store
from tests.fakes.disks import make_read_only, small_disk
from tests.store.conftest import IDENTITY, PLAN, MakeVariant, add_shard, write_shard


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """``gc`` waits for a twentieth of a second."""
    (wait,) = locks.exclusive_lock.__wrapped__.__defaults__ or (None,)  # type: ignore[attr-defined]
    assert wait == locks.LONGEST_WAIT_S == 10
    monkeypatch.setattr(locks.exclusive_lock.__wrapped__, "__defaults__", (0.05,))  # type: ignore[attr-defined]


def test_a_shard_of_no_variant_stays_while_its_lease_is_open(store: Store) -> None:
    with store.lease() as lease:
        shard = write_shard(lease, "layer 0", b"weights")
        assert store.collect_garbage().n_shards == 0
        assert store.shard_path(shard.id).exists()
    assert store.collect_garbage().n_shards == 1
    assert list((store.path / "leases").iterdir()) == []


def test_a_recalled_shard_stays(store: Store) -> None:
    shard, recipe_id = add_shard(store, "layer 0", b"weights"), "ab" * 32
    store.remember(recipe_id, {}, shard)
    with store.lease() as lease:
        assert lease.recall("cd" * 32) is None
        assert lease.recall(recipe_id) == shard
        assert store.collect_garbage().n_shards == 0
        assert store.recall(recipe_id) == shard  # nor is its recipe collected
    assert store.collect_garbage().n_shards == 1
    assert store.recall(recipe_id) is None


def test_a_shard_still_to_come_can_be_protected(store: Store) -> None:
    shard = add_shard(store, "layer 0", b"weights")
    assert store.collect_garbage().n_shards == 1
    with store.lease() as lease:
        lease.protect([shard.id])
        add_shard(store, "layer 0", b"weights")
        assert store.collect_garbage().n_shards == 0


def test_a_held_variant_may_be_removed_and_its_shards_stay(store: Store, make_variant: MakeVariant) -> None:
    made = make_variant("v", b"a", b"b")
    with store.lease(reading=True) as lease:
        held = lease.hold("v")
        assert held == made
        store.remove("v")
        assert store.collect_garbage().n_shards == 0
        assert [path.read_bytes() for path in store.shard_paths(held)] == [b"a", b"b"]
    assert store.collect_garbage().n_shards == 2


def test_a_variant_that_is_not_there_cannot_be_held(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a")
    with store.lease() as lease, pytest.raises(UnknownVariant, match="there are: v"):
        lease.hold("w")


def test_everything_stays_while_it_is_verified(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a", b"b")
    add_shard(store, "layer 0", b"of no variant")
    freed: list[int] = []

    def interfere(_: int) -> None:
        if "v" in store.variant_names():
            store.remove("v")
        freed.append(store.collect_garbage().n_shards)

    report = store.verify(interfere)
    assert (report.ok, report.n_shards, freed) == (True, 3, [0, 0, 0])
    assert store.collect_garbage().n_shards == 3


def test_no_variant_comes_to_be_of_shards_that_are_gone(store: Store) -> None:
    shard = add_shard(store, "layer 0", b"weights")
    store.collect_garbage()
    with pytest.raises(ShardDamaged, match="missing"):
        store.add_variant("v", PLAN, [shard])
    assert store.variants() == ()
    assert list((store.path / "incoming").iterdir()) == []


def test_the_lease_of_a_killed_process_holds_nothing(store: Store) -> None:
    shard = add_shard(store, "layer 0", b"weights")
    code = (
        "import sys, time; from pathlib import Path; from lamella.store.store import Store; "
        f"lease = Store.open(Path({str(store.path)!r})).lease(); lease.protect([{shard.id!r}]); "
        "print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    assert store.collect_garbage().n_shards == 0
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert store.leftovers().n_leases == 1
    assert store.collect_garbage().n_shards == 1
    assert store.leftovers().n_leases == 0


def test_a_lease_of_another_version_keeps_gc_from_deleting(store: Store) -> None:
    add_shard(store, "layer 0", b"weights")
    with store.lease() as lease:
        lease.protect([])
        (path,) = (store.path / "leases").iterdir()
        path.write_text("lamella.lease 2\n")
        with pytest.raises(StoreFormatError, match=r"nothing was deleted.*lamella\.lease 2"):
            store.collect_garbage()
        assert store.leftovers().n_shards == 0  # not known
    assert store.collect_garbage().n_shards == 1


def test_a_line_being_written_is_not_read_yet(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"a", b"b")
    with store.lease() as lease:
        lease.hold("v")
        (path,) = (store.path / "leases").iterdir()
        os.truncate(path, path.stat().st_size - 30)
        assert leased_ids(store._layout) == {variant.shards[0].id}


# stores that take no leases


def can_be_locked_alone(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_reader_of_a_read_only_store_holds_the_lock_until_it_has_settled(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        store = Store.create(disk / "store", IDENTITY)
        store.add_variant("v", PLAN, [add_shard(store, "layer 0", b"a")])
        make_read_only(disk)
        with store.lease(reading=True) as lease:
            lease.hold("v")
            assert not can_be_locked_alone(store.path / "lock")
            lease.settle()
            assert can_be_locked_alone(store.path / "lock")
        with pytest.raises(StorageFailed, match="Read-only file system"):
            store.lease()


def test_a_full_disk_keeps_nobody_from_reading_and_collecting(tmp_path: Path, no_patience: None) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = Store.create(disk / "store", IDENTITY)
        store.add_variant("v", PLAN, [add_shard(store, "layer 0", b"a")])
        add_shard(store, "layer 0", bytes(1 << 17))
        with (disk / "hog").open("wb", buffering=0) as hog, contextlib.suppress(OSError):
            while hog.write(bytes(4096)):
                pass
        with store.lease(reading=True) as lease:
            held = lease.hold("v")
            assert store.shard_paths(held)[0].read_bytes() == b"a"
            with pytest.raises(StoreBusy, match="in use"):
                store.collect_garbage()  # nobody can know what the reader relies on
        with store.lease() as lease, pytest.raises(StorageFailed, match="No space left"):
            lease.hold("v")
        assert store.verify().ok
        store.remove("v")
        assert store.collect_garbage().n_shards == 2


# between creating and locking


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Removes the first file that is opened before its owner has locked it; the list says which."""
    removed: list[Path] = []
    lock = fcntl.flock

    def flock(fd: int, how: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if not removed and path.parent.name in ("incoming", "leases"):
            removed.append(path)
            assert remove_dead(path) is not None
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    yield removed
    assert len(removed) == 1


def test_a_file_collected_before_it_was_locked_is_made_again(store: Store, collector: list[Path]) -> None:
    with IncomingFile(store.path / "incoming") as file:
        assert file.path == collector[0]
        file.write(b"x")
        assert file.path.read_bytes() == b"x"
        assert remove_dead(file.path) is None


def test_a_folder_collected_before_it_was_locked_is_made_again(store: Store, collector: list[Path]) -> None:
    with incoming_folder(store.path / "incoming") as folder:
        assert folder == collector[0]
        assert folder.is_dir()
        assert remove_dead(folder) is None


def test_a_claim_released_before_it_was_locked_is_made_again(store: Store, collector: list[Path]) -> None:
    with store.claims() as claims:
        assert claims.take("ab" * 32)
        assert collector[0].exists()
        assert take_over(collector[0]) is None


# claims


def test_a_recipe_is_claimed_by_one_at_a_time(store: Store) -> None:
    with store.claims() as mine, store.claims() as others:
        assert mine.take("ab" * 32)
        assert not others.take("ab" * 32)
        assert others.take("cd" * 32)
        mine.release("ab" * 32)
        assert others.take("ab" * 32)
        assert not mine.take("ab" * 32)
    assert list((store.path / "incoming").iterdir()) == []


def test_a_dead_builders_claim_is_free(store: Store) -> None:
    claim = store.path / "incoming" / f"{'ab' * 32}.claim"
    claim.touch()
    assert store.leftovers().n_files == 0  # nothing was lost with it
    with store.claims() as claims:
        assert claims.take("ab" * 32)
        assert store.collect_garbage().n_incoming == 0
        assert claim.exists()
    claim.touch()
    store.collect_garbage()
    assert not claim.exists()


# everybody at once


def test_rm_and_builders_of_one_name_do_not_trip_over_each_other(store: Store) -> None:
    stop, errors = time.monotonic() + 1.0, []

    def work(do: object) -> None:
        while time.monotonic() < stop:
            try:
                do()  # type: ignore[operator]
            except UnknownVariant:
                pass
            except BaseException as error:
                errors.append(error)
                return

    def build() -> None:
        with store.lease() as lease:
            store.add_variant("v", PLAN, [write_shard(lease, "layer 0", b"weights")])

    tasks = (build, build, lambda: store.remove("v"), store.collect_garbage, store.variants, store.leftovers)
    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.verify().ok
