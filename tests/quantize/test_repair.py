"""Every kind of damage is mended, from the source or from another store, or said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.core.errors import StoreError
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.quantize.repair import repair
from lamella.quantize.trimming import trim
from lamella.store.fetching import FolderSource
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 1000)


DAMAGE: dict[str, Callable[[Path], object]] = {"flipped": flip, "cut": cut, "deleted": lambda path: path.unlink()}


@pytest.fixture
def store(source: ModelFile, tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store", source.spec.identity)
    for name, precision in (("large", "int8"), ("small", "int4")):
        build_variant(source, make_plan(source.spec, precision), made, name)
    return made


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_mended_from_the_source(store: Store, damage: Callable[[Path], object]) -> None:
    shards = [store.variant("small").shards[i] for i in (0, 2, 5)]
    for shard in shards:
        damage(store.shard_path(shard.id))
    report = repair(store)
    assert report.ok
    assert {r.id for r in report.repaired} == {s.id for s in shards}
    assert {r.origin for r in report.repaired} == {"made again"}
    assert store.verify().ok
    assert store.shard_path(shards[0].id).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_mended_from_another_store_without_the_source(
    store: Store, source: ModelFile, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    shutil.copytree(store.path, tmp_path / "backup", symlinks=True)
    backup = FolderSource(Store.open(tmp_path / "backup"))
    source.paths[0].unlink()
    shard = store.variant("small").shards[2]
    damage(store.shard_path(shard.id))
    (repaired,) = repair(store, elsewhere=[backup]).repaired
    assert (repaired.id, repaired.origin) == (shard.id, str(tmp_path / "backup"))
    assert store.verify().ok


def test_a_damaged_backup_is_not_taken_and_the_source_is(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "backup", symlinks=True)
    backup = Store.open(tmp_path / "backup")
    shard = store.variant("small").shards[2]
    for each in (store, backup):
        flip(each.shard_path(shard.id))
    (repaired,) = repair(store, elsewhere=[FolderSource(backup)]).repaired
    assert repaired.origin == "made again"
    assert store.verify().ok


def test_what_cannot_be_mended_is_said_and_stays(store: Store, source: ModelFile) -> None:
    shard = store.variant("small").shards[2]
    flip(store.shard_path(shard.id))
    bad = store.shard_path(shard.id).read_bytes()
    store.shard_path(store.variant("small").shards[3].id).unlink()
    source.paths[0].unlink()
    report = repair(store)
    assert not report.ok
    assert not report.repaired
    assert {f.label for f in report.failed} == {"layer 1", "layer 2"}
    assert all("model.gguf: No such file" in f.reason for f in report.failed)
    assert store.shard_path(shard.id).read_bytes() == bad


def test_another_file_of_the_model_will_do_and_is_remembered(store: Store, source: ModelFile, tmp_path: Path) -> None:
    moved = source.paths[0].rename(tmp_path / "moved.gguf")
    shard = store.variant("small").shards[2]
    flip(store.shard_path(shard.id))
    assert not repair(store).ok
    assert repair(store, model=read_model(moved)).ok
    flip(store.shard_path(shard.id))
    assert repair(store).ok


@pytest.mark.parametrize(("n_layers", "what"), [(3, "is not what .* was made from"), (2, "another structure")])
def test_another_model_is_refused(store: Store, tmp_path: Path, n_layers: int, what: str) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_embd=256, n_ff=512, seed=1, n_layers=n_layers)
    notes = {path: path.read_bytes() for path in (store.path / "sources").iterdir()}
    flip(store.shard_path(store.variant("small").shards[2].id))
    with pytest.raises(StoreError, match=what):
        repair(store, model=read_model(other))
    assert {path: path.read_bytes() for path in (store.path / "sources").iterdir()} == notes
    assert len(store.verify().damaged) == 1


def test_links_that_lead_elsewhere_are_mended(store: Store) -> None:
    links = sorted((store.path / "variants/small").glob("*.gguf"))
    links[1].unlink()
    links[2].unlink()
    links[2].symlink_to("../../shards")
    assert not store.verify().ok
    assert repair(store).mended_links == tuple(f"small/{link.name}" for link in links[1:3])
    assert store.verify().ok


def test_dropped_shards_stay_dropped(store: Store) -> None:
    store.state.set_quota(1)
    dropped = {shard.id for shard in trim(store).dropped}
    report = repair(store)
    assert report.ok
    assert not report.repaired
    assert store.state.dropped() == dropped


def test_a_note_that_cannot_be_read_is_mended_with_its_shard(store: Store) -> None:
    store.state.set_quota(1)
    dropped = trim(store).dropped[0]
    note = store.path / f"dropped/{dropped.id[:2]}/{dropped.id}.json"
    note.chmod(0o644)
    note.write_text("{")
    assert not store.verify().ok
    assert [r.id for r in repair(store).repaired] == [dropped.id]
    assert not note.exists()
    assert store.verify().ok


def test_a_damaged_shard_of_no_variant_is_left_to_gc(store: Store) -> None:
    store.remove("small")
    needed = {s.id for s in store.variant("large").shards}
    lost = next(p for p in (store.path / "shards").rglob("*.gguf") if p.stem not in needed)
    flip(lost)
    (failed,) = repair(store).failed
    assert "lamella store gc" in failed.reason
    store.collect_garbage()
    assert repair(store).ok
