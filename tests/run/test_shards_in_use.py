"""Shards of a running engine: read in, damaged, missing, kept from garbage collection."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.core.artifacts import Variant
from lamella.core.errors import ShardDamaged
from lamella.llama.pages import resident_bytes
from lamella.run.engine import Engine
from lamella.store.leftovers import Leftovers
from lamella.store.store import Store
from tests.fakes.disks import make_read_only, small_disk
from tests.run.conftest import OPTIONS, PROMPT, ids_of, mapped_resident


def test_the_first_variants_pages_are_not_kept_twice(store: Store) -> None:
    """llama.cpp's own mapping of the files it loaded is released once the weights point into ours."""
    with Engine.open(store, "large", OPTIONS) as engine:
        mapped = mapped_resident(store.path)
        engine.generate(PROMPT, max_tokens=2).text()
        total = sum(s.n_bytes for s in store.variant("large").shards)
    assert 0 < mapped < 1.6 * total


def test_prepare_reads_the_shards_in(store: Store, engine: Engine) -> None:
    prepared = engine.prepare("small").result()
    assert all(resident_bytes(store.shard_path(s.id)) >= s.n_bytes for s in prepared.variant.shards)


def test_a_damaged_shard_is_refused_when_asked_to_check_and_nothing_changes(store: Store, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(store.path, tmp_path / "copy", symlinks=True)))
    shard = next(s for s in copy.variant("small").shards if s.label == "layer 1")
    path = copy.shard_path(shard.id)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with Engine.open(copy, "large", replace(OPTIONS, check=True)) as engine:
        before = ids_of(engine)
        with pytest.raises(ShardDamaged, match=shard.id):
            engine.switch("small")
        assert engine.variant == "large"
        assert ids_of(engine) == before
    with pytest.raises(ShardDamaged, match="layer 1"):
        Engine.open(copy, "small", replace(OPTIONS, check=True))


def test_a_failed_preparation_may_be_tried_again(store: Store, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(store.path, tmp_path / "copy", symlinks=True)))
    shard = next(s for s in copy.variant("small").shards if s.label == "layer 1")
    path = copy.shard_path(shard.id)
    hidden = path.rename(path.with_suffix(".away"))
    with Engine.open(copy, "large", OPTIONS) as engine:
        with pytest.raises(ShardDamaged, match="layer 1"):
            engine.switch("small")
        hidden.rename(path)
        assert engine.switch("small").after == "small"


def test_an_unreadable_variant_does_not_keep_the_others_from_running(store: Store, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(store.path, tmp_path / "copy", symlinks=True)))
    document = copy.path / "variants" / "middle" / "variant.json"
    document.chmod(0o644)
    document.write_text("{")
    with Engine.open(copy, None, replace(OPTIONS, layout="auto")) as engine:
        assert engine.variant == "large"
        assert engine.variants == ("large", "small")
        assert engine.switch("small").after == "small"


def test_gc_leaves_the_shards_of_open_variants_alone(store: Store, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(store.path, tmp_path / "copy", symlinks=True)))
    large, small, middle = (copy.variant(name) for name in ("large", "small", "middle"))
    own = {v.name: _shards_of_no_other(v, (large, small, middle)) for v in (large, small, middle)}

    def there(name: str) -> set[bool]:
        return {copy.shard_path(i).exists() for i in own[name]}

    with Engine.open(copy, "large", replace(OPTIONS, n_warm=1)) as engine:
        expected = ids_of(engine)
        for name in ("large", "small", "middle"):
            copy.remove(name)
        assert copy.collect_garbage().n_shards == len(own["small"] | own["middle"])
        assert (there("large"), there("small")) == ({True}, {False})
        assert ids_of(engine) == expected
    assert copy.collect_garbage().n_shards == len(large.shards)
    assert copy.leftovers() == Leftovers(0, 0, 0, 0, 0)


@pytest.mark.parametrize("last", ["large", "small"])
def test_a_lease_ends_when_its_variant_is_neither_warm_nor_waited_for(store: Store, tmp_path: Path, last: str) -> None:
    copy = Store.open(Path(shutil.copytree(store.path, tmp_path / "copy", symlinks=True)))
    variants = {name: copy.variant(name) for name in ("large", "small", "middle")}
    with Engine.open(copy, "large", replace(OPTIONS, n_warm=1)) as engine:
        engine.prepare("small").result()
        engine.prepare("middle").result()
        engine.switch(last)
        for name in variants:
            copy.remove(name)
        copy.collect_garbage()
        left = {path.stem for path in copy.path.glob("shards/*/*.gguf")}
        assert left == {s.id for name in (last, "middle") for s in variants[name].shards}
    assert list((copy.path / "leases").iterdir()) == []


def test_a_store_that_may_only_be_read_runs_and_is_not_kept_locked(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        copy = Store.open(Path(shutil.copytree(store.path, disk / "copy", symlinks=True)))
        make_read_only(disk)
        with Engine.open(copy, "large", OPTIONS) as engine, (copy.path / "lock").open("rb") as lock:
            engine.switch("small")
            assert ids_of(engine)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if somebody holds it


def _shards_of_no_other(variant: Variant, variants: Sequence[Variant]) -> set[str]:
    return {s.id for s in variant.shards} - {s.id for v in variants if v != variant for s in v.shards}
