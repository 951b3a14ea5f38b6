"""A quota is kept by dropping what comes back bit for bit when it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamella.core.artifacts import Variant
from lamella.core.errors import InvalidRequest, QuotaNotReached, StoreBusy, StoreFormatError
from lamella.llama.gguf import ModelFile
from lamella.quantize import trimming
from lamella.quantize.build import build_variant
from lamella.quantize.rebuild import restore_variant
from lamella.quantize.recipe import shard_jobs
from lamella.quantize.suppliers import Suppliers
from lamella.quantize.trimming import IN_USE, keep_quota, survey, trim, work_of
from lamella.quantize.tuned import Tuning
from lamella.store import locks
from lamella.store.keeping import Choice, choose
from lamella.store.layout import Layout
from lamella.store.store import Store
from tests.fakes.matrices import make_matrix
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

NOW = 10_000.0


@pytest.fixture
def store(source: ModelFile, tmp_path: Path) -> Store:
    """Variants large and small, which share embedding, head and metadata; large was used last."""
    made = Store.create(tmp_path / "store", source.spec.identity)
    for name, precision, used in (("large", "int8", NOW - 10), ("small", "int4", NOW - 5000)):
        build_variant(source, make_plan(source.spec, precision), made, name)
        os.utime(made.path / f"variants/{name}/variant.json", (used, used))
    return made


def set_excess(store: Store, n_bytes: int) -> None:
    """A quota that many bytes below what the store takes."""
    store.state.set_quota(1)  # the note itself takes room
    store.state.set_quota(store.state.stored_bytes() - n_bytes)


def present(store: Store, variant: Variant) -> list[str]:
    return [s.label for s in variant.shards if store.shard_path(s.id).exists()]


def test_dropped_shards_come_back_bit_for_bit(store: Store) -> None:
    variant = store.variant("small")
    set_excess(store, 100)
    report = trim(store, now=NOW)
    (gone,) = report.dropped
    assert gone in variant.shards
    assert gone not in store.variant("large").shards
    assert report.short_bytes == 0
    assert store.is_dropped(gone.id)
    verified = store.verify()
    assert verified.ok
    assert [d.id for d in verified.dropped] == [gone.id]
    assert restore_variant(store, variant) == {gone.label: "made again"}
    assert store.verify().dropped == ()
    store.check(variant)


def test_the_variant_that_was_used_last_stays_whole(store: Store) -> None:
    small = store.variant("small")
    own = sum(s.n_bytes for s in small.shards if s.label.startswith("layer"))
    set_excess(store, own - 2000)
    trim(store, now=NOW)
    assert present(store, small) == ["meta", "embedding", "head"]
    assert len(present(store, store.variant("large"))) == 6
    os.utime(store.path / "variants/small/variant.json", (NOW + 1e6, NOW + 1e6))
    restore_variant(store, small)
    trim(store, now=NOW + 1e6)
    assert len(present(store, small)) == 6
    assert len(present(store, store.variant("large"))) < 6


def test_what_no_variant_needs_goes_first(store: Store, source: ModelFile) -> None:
    build_variant(source, make_plan(source.spec, "int6"), store, "gone")
    store.remove("gone")
    set_excess(store, 100)
    report = trim(store)
    assert report.garbage_bytes > 100
    assert report.dropped == ()
    assert len(store.verify().dropped) == 0


def test_a_pinned_variant_stays_whole_and_the_rest_is_said(store: Store) -> None:
    store.state.pin("large")
    store.state.set_quota(1)
    report = trim(store)
    assert len(present(store, store.variant("large"))) == 6
    assert present(store, store.variant("small")) == ["meta", "embedding", "head"]  # large needs these
    assert report.short_bytes == store.state.stored_bytes() - 1
    with pytest.raises(QuotaNotReached, match=r"its quota is 1 B.* pinned"):
        report.check_reached()


def test_metadata_is_never_dropped(store: Store) -> None:
    store.state.set_quota(1)
    report = trim(store)
    for name in ("large", "small"):
        assert present(store, store.variant(name)) == ["meta"]
    assert list(report.kept_bytes) == ["of metadata"]
    for name in ("large", "small"):
        restore_variant(store, store.variant(name))
    assert store.verify().ok
    assert not store.verify().dropped


@pytest.mark.parametrize("change", ["gone", "written to", "other weights"])
def test_nothing_is_dropped_that_the_source_may_not_give_again(store: Store, source: ModelFile, change: str) -> None:
    path = source.paths[0]
    if change == "gone":
        path.unlink()
    elif change == "written to":
        os.utime(path, (1, 1))
    else:
        write_tiny_model(path, n_embd=256, n_ff=512, seed=1)
    store.state.set_quota(1)
    report = trim(store)
    assert report.dropped == ()
    with pytest.raises(QuotaNotReached, match=rf"cannot be made again.*{path}"):
        report.check_reached()


def test_nothing_is_dropped_that_was_tuned_or_is_not_on_record(store: Store, source: ModelFile) -> None:
    tuning = Tuning("a" * 64, lambda _: {})
    tuned = build_variant(source, make_plan(source.spec, "int5"), store, "tuned", tuning=tuning).variant
    for path in (store.path / "recipes").rglob("*.json"):  # a cache: it may be deleted
        path.unlink()
    store.state.set_quota(1)
    report = trim(store)
    assert report.dropped == ()
    assert any("tuned on text" in reason for reason in report.kept_bytes)
    assert any("not on record" in reason for reason in report.kept_bytes)
    assert len(present(store, tuned)) == 6


def test_a_matrix_that_is_gone_keeps_its_shards(store: Store, source: ModelFile) -> None:
    plan = make_plan(source.spec, "int5")
    variant = build_variant(source, plan, store, "v", importance=make_matrix(source.spec)).variant
    (matrix,) = (store.path / "importance").iterdir()
    matrix.unlink()
    store.state.set_quota(1)
    trim(store)
    assert present(store, variant) == ["meta", "layer 0", "layer 1", "layer 2"]  # the rest is large's and small's too


def test_while_a_variant_is_the_source_it_stays(store: Store, source: ModelFile) -> None:
    copy = build_variant(source, make_plan(source.spec, "fp16", outside="fp16"), store, "copy").variant
    source.paths[0].unlink()
    store.state.set_quota(1)
    trim(store)
    assert len(present(store, copy)) == 6
    assert present(store, store.variant("small")) == ["meta"]
    restore_variant(store, store.variant("small"))
    assert store.verify().ok


def test_a_store_that_keeps_its_quota_is_left_alone(store: Store) -> None:
    store.state.set_quota(1 << 40)
    report = trim(store)
    assert (report.dropped, report.garbage_bytes, report.short_bytes) == ((), 0, 0)


def test_trim_needs_a_quota(store: Store) -> None:
    with pytest.raises(InvalidRequest, match=r"has no quota.*lamella store quota"):
        trim(store)
    assert keep_quota(store) is None


def test_what_somebody_uses_stays_and_the_rest_goes(store: Store) -> None:
    store.state.set_quota(1)
    with store.lease(reading=True) as lease:
        large = lease.hold("large")
        report = trim(store)
        assert len(present(store, large)) == 6
        assert present(store, store.variant("small")) == ["meta", "embedding", "head"]  # large needs these
        assert report.kept_bytes[IN_USE] == sum(s.n_bytes for s in large.shards[1:])
    assert len(trim(store).dropped) == 5
    assert present(store, large) == ["meta"]


def test_who_comes_between_the_look_and_the_drop_keeps_what_he_holds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_excess(store, 100)
    with store.lease(reading=True) as lease:

        def come_in_between(*args: Any, **options: Any) -> Choice:
            choice = choose(*args, **options)
            lease.hold("small")  # what was chosen first is of it
            return choice

        monkeypatch.setattr(trimming, "choose", come_in_between)
        report = trim(store, now=NOW)
    assert present(store, store.variant("small")) == [s.label for s in store.variant("small").shards]
    (gone,) = report.dropped
    assert gone in store.variant("large").shards
    assert report.short_bytes == 0


def test_a_reader_without_a_lease_keeps_the_quota_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.exclusive_lock.__wrapped__, "__defaults__", (0.05,))  # type: ignore[attr-defined]
    store.state.set_quota(1)
    with locks.shared_lock(Layout(store.path)):
        with pytest.raises(StoreBusy):
            trim(store)
        kept = keep_quota(store)
    assert kept is not None
    assert kept.short_bytes
    assert "is in use" in kept.obstacle
    assert store.verify().dropped == ()


def test_an_unreadable_variant_or_pin_stops_it(store: Store) -> None:
    store.state.set_quota(1)
    store.state.pin("small")
    pin = store.path / "pins/small.json"
    pin.chmod(0o644)
    pin.write_text("{")
    with pytest.raises(StoreFormatError, match="unpin"):
        trim(store)
    store.state.unpin("small")
    document = store.path / "variants/small/variant.json"
    document.write_text("{")
    with pytest.raises(StoreFormatError, match="nothing was deleted"):
        trim(store)
    assert store.state.dropped() == frozenset()


def test_a_build_makes_dropped_shards_of_its_own_again(store: Store, source: ModelFile) -> None:
    store.state.set_quota(1)
    trim(store)
    store.state.set_quota(None)
    report = build_variant(source, make_plan(source.spec, "int4"), store, "small")
    assert report.n_reused == 1
    assert len(present(store, report.variant)) == 6


def test_work_grows_with_what_a_type_asks_for(source: ModelFile) -> None:
    names = ("F16", "Q8_0", "Q4_K", "IQ3_S")
    works = [work_of(shard_jobs(source, make_plan(source.spec, name))[1]) for name in names]
    assert works == sorted(works)
    assert len(set(works)) == 4


def test_the_survey_knows_every_shard_that_is_there(store: Store) -> None:
    kept = {s.ref.label: s for s in survey(store, Suppliers(store, None)) if s.variants == ("large", "small")}
    assert set(kept) == {"meta", "embedding", "head"}
    assert kept["head"].last_used == NOW - 10
    assert len(survey(store, Suppliers(store, None))) == 9
