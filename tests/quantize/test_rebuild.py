"""Shards made again are the same bytes; what cannot be made again is said, and nothing wrong gets a name."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import CannotRebuild, ShardDamaged, UnknownVariant
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.imatrix import ImportanceMatrix
from lamella.quantize.build import build_variant
from lamella.quantize.making import BuildProgress, BuildStopped
from lamella.quantize.rebuild import Workshop, restore_variant
from lamella.quantize.tuned import Tuning
from lamella.store.files import OwnedFile
from lamella.store.keeping import KeptShard
from lamella.store.leases import Lease
from lamella.store.store import Store
from lamella.store.verify import users_of
from tests.fakes.matrices import make_matrix
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

ALL_OUTSIDE = "fp16"


@pytest.fixture
def store(source: ModelFile, tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", source.spec.identity)


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with store.lease() as held:
        yield held


def build(store: Store, source: ModelFile, name: str, precision: str, **options: object) -> Variant:
    plan = make_plan(source.spec, precision, outside=str(options.pop("outside", "int8")))
    importance, tuning = options.get("importance"), options.get("tuning")
    assert importance is None or isinstance(importance, ImportanceMatrix)
    assert tuning is None or isinstance(tuning, Tuning)
    return build_variant(source, plan, store, name, importance=importance, tuning=tuning).variant


def lose(store: Store, *shards: ShardRef) -> None:
    for shard in shards:
        store.shard_path(shard.id).unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def layers(variant: Variant) -> list[ShardRef]:
    return [shard for shard in variant.shards if shard.label.startswith("layer")]


@pytest.mark.parametrize("scheme", ["block", "channel"])
@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_a_whole_variant_is_made_again_bit_for_bit(
    store: Store, source: ModelFile, precision: str, scheme: str
) -> None:
    plan = make_plan(source.spec, precision, scheme="channel" if scheme == "channel" else "block")
    variant = build_variant(source, plan, store, "v").variant
    lose(store, *variant.shards)
    got = restore_variant(store, variant)
    assert set(got.values()) == {"made again"}
    assert len(got) == len(variant.shards)
    report = store.verify()
    assert report.ok
    assert report.n_shards == len(variant.shards)  # and nothing besides


def test_only_what_is_not_there_is_made(store: Store, source: ModelFile) -> None:
    variant = build(store, source, "v", "int4")
    lost, kept = layers(variant)[:2]
    before = store.shard_path(kept.id).stat().st_mtime_ns
    store.shard_path(lost.id).chmod(0o644)
    os.truncate(store.shard_path(lost.id), 100)
    assert restore_variant(store, variant) == {lost.label: "made again"}
    assert store.shard_path(kept.id).stat().st_mtime_ns == before
    assert restore_variant(store, variant) == {}


def test_the_importance_matrix_is_kept_for_it(store: Store, source: ModelFile) -> None:
    variant = build(store, source, "v", "IQ2_XXS", importance=make_matrix(source.spec))
    lose(store, *variant.shards)
    restore_variant(store, variant)
    assert store.verify().ok
    (kept,) = (store.path / "importance").iterdir()
    assert kept.stem == variant.plan.settings["importance_matrix"]
    lose(store, *layers(variant))
    kept.unlink()
    with pytest.raises(ShardDamaged, match=r"layer 0 of v\).*does not keep its importance matrix"):
        restore_variant(store, variant)


def test_another_importance_matrix_under_that_name_is_refused(store: Store, lease: Lease, source: ModelFile) -> None:
    first = build(store, source, "v", "int4", importance=make_matrix(source.spec))
    other = build(store, source, "w", "int4", importance=make_matrix(source.spec, seed=1))
    paths = [store.sources.importance_path(str(v.plan.settings["importance_matrix"])) for v in (first, other)]
    assert paths[0] is not None
    assert paths[1] is not None
    paths[1].replace(paths[0])
    with pytest.raises(CannotRebuild, match="keeps another importance matrix"):
        Workshop(store, lease).maker(layers(first)[0])


def test_gc_removes_matrices_that_no_variant_needs(store: Store, source: ModelFile) -> None:
    build(store, source, "v", "int4", importance=make_matrix(source.spec))
    kept = build(store, source, "w", "int4", importance=make_matrix(source.spec, seed=1))
    store.remove("v")
    store.collect_garbage()
    assert [p.stem for p in (store.path / "importance").iterdir()] == [kept.plan.settings["importance_matrix"]]


def test_gc_leaves_the_matrix_of_a_variant_that_is_being_built(store: Store, source: ModelFile) -> None:
    plan, matrix = make_plan(source.spec, "int4", outside="int8"), make_matrix(source.spec)

    def collect(_: BuildProgress) -> None:
        store.collect_garbage()

    variant = build_variant(source, plan, store, "v", importance=matrix, on_progress=collect).variant
    assert store.sources.importance_path(str(variant.plan.settings["importance_matrix"])) is not None
    lose(store, *layers(variant))
    restore_variant(store, variant)
    assert store.verify().ok


def test_gc_and_trim_leave_what_is_being_made_again(store: Store, source: ModelFile) -> None:
    """Also the variant that serves as the source, though nobody else holds it."""
    copy = build(store, source, "copy", "fp16", outside=ALL_OUTSIDE)
    variant = build(store, source, "v", "int4")
    lose(store, *(shard for shard in variant.shards if shard not in copy.shards))
    source.paths[0].unlink()
    n_calls = 0

    def interfere() -> bool:
        nonlocal n_calls
        n_calls += 1
        store.collect_garbage()
        shards = {shard.id: shard for each in (copy, variant) for shard in each.shards}
        users = {i: users_of(i, store.variants()) for i in shards}
        assert store.drop([KeptShard(s, users[i], 0, 0) for i, s in shards.items()]) == ()
        return False

    restore_variant(store, variant, should_stop=interfere)
    assert n_calls
    assert store.verify().ok
    assert not store.verify().dropped


def test_two_who_want_a_shard_back_make_it_once(
    store: Store, source: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = build(store, source, "v", "int4")
    lose(store, *layers(variant))
    placed: list[str] = []
    place = Lease.place

    def counted(lease: Lease, file: OwnedFile, shard_id: str) -> None:
        placed.append(shard_id)
        place(lease, file, shard_id)

    monkeypatch.setattr(Lease, "place", counted)
    together = threading.Barrier(2)

    def get_back() -> None:
        together.wait()
        restore_variant(store, variant, n_threads=1)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(get_back) for _ in range(2)]:
            future.result(timeout=60)
    assert sorted(placed) == sorted(shard.id for shard in layers(variant))
    assert store.verify().ok


def test_a_variant_that_is_removed_meanwhile_is_unknown(store: Store, source: ModelFile) -> None:
    variant = build(store, source, "v", "int4")
    lose(store, layers(variant)[0])
    store.remove("v")
    with pytest.raises(UnknownVariant):
        restore_variant(store, variant)


def test_tuned_layers_cannot_be_made_again_but_the_rest_can(store: Store, lease: Lease, source: ModelFile) -> None:
    variant = build(store, source, "v", "int4", tuning=Tuning("a" * 64, lambda _: {}))
    workshop = Workshop(store, lease)
    for shard in variant.shards:
        if shard in layers(variant):
            with pytest.raises(CannotRebuild, match="tuned on text"):
                workshop.maker(shard)
        else:
            lose(store, shard)
            workshop.make(shard)
    assert store.verify().ok


def test_a_moved_source_is_named_with_the_cure_and_another_file_of_it_will_do(
    store: Store, lease: Lease, source: ModelFile, tmp_path: Path
) -> None:
    variant = build(store, source, "v", "int4")
    lose(store, layers(variant)[0])
    moved = tmp_path / "elsewhere.gguf"
    source.paths[0].rename(moved)
    with pytest.raises(
        ShardDamaged, match=rf"model\.gguf: No such file.*lamella store repair {store.path} --model FILE"
    ):
        restore_variant(store, variant)
    Workshop(store, lease, read_model(moved)).make(layers(variant)[0])
    assert store.verify().ok


def test_other_weights_in_its_place_are_refused(store: Store, source: ModelFile, tmp_path: Path) -> None:
    variant = build(store, source, "v", "int4")
    lose(store, layers(variant)[0])
    write_tiny_model(source.paths[0], n_embd=256, n_ff=512, seed=1)
    with pytest.raises(ShardDamaged, match=r"model\.gguf holds other weights than it did"):
        restore_variant(store, variant)


def test_a_change_that_the_identity_does_not_see_is_refused_by_the_hash(
    store: Store, lease: Lease, source: ModelFile
) -> None:
    variant = build(store, source, "v", "int8")
    lost = layers(variant)[1]
    lose(store, lost)
    tensor = source.tensors["blk.1.ffn_up.weight"]
    assert tensor.n_bytes > 2 * 4096  # more than the identity looks at
    with source.paths[0].open("r+b") as file:
        file.seek(tensor.offset + tensor.n_bytes // 2)
        file.write(b"\x00\x3c" * 64)
    before = sorted(store.path.rglob("*"))
    with pytest.raises(CannotRebuild, match=rf"came out as .*, not as {lost.id}.*model\.gguf was written to since"):
        Workshop(store, lease).make(lost)
    assert sorted(store.path.rglob("*")) == before


def test_a_source_with_another_chat_template_makes_all_but_the_metadata(
    store: Store, lease: Lease, source: ModelFile, tmp_path: Path
) -> None:
    variant = build(store, source, "v", "int4")
    meta, layer = variant.shards[:2]
    lose(store, meta, layer)
    other = read_model(write_tiny_model(tmp_path / "other.gguf", n_embd=256, n_ff=512, chat_template="new"))
    workshop = Workshop(store, lease, other)
    workshop.make(layer)
    with pytest.raises(CannotRebuild, match=r"the source has other metadata than it had"):
        workshop.make(meta)
    assert not store.shard_path(meta.id).exists()


def test_a_variant_as_the_source_stores_it_serves_as_the_source(store: Store, lease: Lease, source: ModelFile) -> None:
    copy = build(store, source, "copy", "fp16", outside=ALL_OUTSIDE)
    variant = build(store, source, "v", "int4")
    source.paths[0].unlink()
    lost = [shard for shard in variant.shards if shard not in copy.shards]
    lose(store, *lost)
    restore_variant(store, variant)
    assert store.verify().ok
    assert Workshop(store, lease).maker(lost[0]).source.variant == copy
    lose(store, layers(copy)[0])
    with pytest.raises(CannotRebuild, match=r"model\.gguf: No such file"):  # a copy with a gap is no source
        Workshop(store, lease).maker(lost[0])


def test_other_weights_of_the_same_types_are_no_source(
    store: Store, lease: Lease, source: ModelFile, tmp_path: Path
) -> None:
    """A variant whose types are the source's, but whose layer is another's."""
    copy = build(store, source, "copy", "fp16", outside=ALL_OUTSIDE)
    flip(store.shard_path(layers(copy)[0].id))  # in the last bytes of a tensor, which the identity looks at
    variant = build(store, source, "v", "int4")
    source.paths[0].unlink()
    with pytest.raises(CannotRebuild, match="its source cannot be used"):
        Workshop(store, lease).maker(layers(variant)[0])


def test_a_store_of_before_does_not_know_its_source(store: Store, lease: Lease, source: ModelFile) -> None:
    variant = build(store, source, "v", "int4")
    shutil.rmtree(store.path / "sources")
    with pytest.raises(CannotRebuild, match="does not know which model file"):
        Workshop(store, lease).maker(layers(variant)[0])


@pytest.mark.parametrize("break_it", [lambda p: p.write_text("{"), lambda p: p.write_text('{"format": "x"}')])
def test_an_unreadable_note_is_named_and_repair_is_the_cure(
    store: Store, lease: Lease, source: ModelFile, break_it: Callable[[Path], object]
) -> None:
    variant = build(store, source, "v", "int4")
    (note,) = (store.path / "sources").iterdir()
    note.chmod(0o644)
    break_it(note)
    assert "--model FILE" in store.verify().unreadable_notes[0]
    with pytest.raises(CannotRebuild, match=rf"{note.name}.*lamella store repair .* --model FILE"):
        Workshop(store, lease).maker(layers(variant)[0])


def test_a_stop_leaves_what_is_done(store: Store, source: ModelFile) -> None:
    variant = build(store, source, "v", "int4")
    lose(store, *layers(variant))
    with pytest.raises(BuildStopped):
        restore_variant(store, variant, should_stop=lambda: store.shard_path(layers(variant)[0].id).exists())
    assert [store.quick_damage(s) for s in layers(variant)] == [None, "missing", "missing"]


def test_a_shard_that_no_variant_needs_cannot_be_made(store: Store, lease: Lease) -> None:
    with pytest.raises(CannotRebuild, match="no variant needs it"):
        Workshop(store, lease).maker(ShardRef("0" * 64, "layer 0", 1))
