"""Building: the variant runs in stock llama.cpp, work is shared and kept, refusals say why."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import (
    InvalidRequest,
    InvalidWeights,
    StorageFailed,
    StoreError,
    VariantExists,
)
from lamella.core.precision import GGML_TYPES, MENU, SCHEMES, Scheme
from lamella.llama.gguf import Header, ModelFile, TensorData, read_model
from lamella.llama.quantize import decode_rows, encode_rows
from lamella.llama.rounding import quantize_rows, truncate_rows
from lamella.quantize.build import ASK_AGAIN_S, build_variant
from lamella.quantize.making import BuildProgress, BuildStopped
from lamella.quantize.recipe import shard_jobs
from lamella.store.store import Store
from tests.fakes.disks import make_read_only, small_disk
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

PRECISIONS = list(MENU)
ROOT = Path(__file__).parents[2]


def generate(path: Path) -> list[int]:
    """Eight greedy tokens from stock llama.cpp."""
    model = llama_cpp.Llama(model_path=str(path), n_ctx=64, n_threads=2, verbose=False)
    try:
        tokens: list[int] = []
        for token in model.generate(model.tokenize(b"Hello world"), temp=0.0):
            tokens.append(token)
            if len(tokens) == 8:
                return tokens
        return tokens
    finally:
        model.close()


def test_a_system_that_does_not_say_which_cores_a_process_may_use_builds_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as macOS
    source = read_model(write_tiny_model(tmp_path / "tiny.gguf", n_layers=1))
    store = Store.create(tmp_path / "store", source.spec.identity)
    build_variant(source, make_plan(source.spec, "int4"), store, "small")
    assert store.verify().ok


def data_of(tensor: TensorData) -> NDArray[np.uint8]:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.n_bytes), np.uint8)


def values_of(tensor: TensorData) -> NDArray[np.float32]:
    return decode_rows(data_of(tensor), tensor.spec.type, tensor.spec.row_length)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_variant_holds_the_planned_types_and_runs_in_stock_llama_cpp(
    tiny: ModelFile, store: Store, precision: str, scheme: Scheme
) -> None:
    plan = make_plan(tiny.spec, precision, scheme=scheme)
    build_variant(tiny, plan, store, "v")
    link = store.first_link("v")
    assert {t.name: t.type_name for t in read_model(link).spec.tensors} == plan.tensors
    assert len(generate(link)) == 8


def test_a_variant_of_the_sources_own_types_generates_what_the_source_generates(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, "fp16", outside="fp16"), store, "copy")
    assert generate(store.first_link("copy")) == generate(tiny.paths[0])


def test_blocks_hold_ggmls_own_rounding(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, ["int4", "int2", "int5"]), store, "v", n_threads=3)
    for name, tensor in read_model(store.first_link("v")).tensors.items():
        expected = encode_rows(values_of(tiny.tensors[name]), tensor.spec.type)
        np.testing.assert_array_equal(data_of(tensor), expected)


def test_channels_hold_eq4(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, ["int4", "int2", "int3"], scheme="channel"), store, "v")
    built = read_model(store.first_link("v")).tensors
    for layer, bits in enumerate((4, 2, 3)):
        name = f"blk.{layer}.ffn_down.weight"
        levels, scales = quantize_rows(values_of(tiny.tensors[name]), bits)
        np.testing.assert_array_equal(values_of(built[name]), levels * scales[:, None].astype(np.float32))


def test_truncated_rows_hold_the_top_bits(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, ["int4", "int2", "int3"], scheme="truncate"), store, "v")
    built = read_model(store.first_link("v")).tensors
    for layer, bits in enumerate((4, 2, 3)):
        name = f"blk.{layer}.ffn_down.weight"
        levels, scales = truncate_rows(values_of(tiny.tensors[name]), bits)
        np.testing.assert_array_equal(values_of(built[name]), levels * scales[:, None].astype(np.float32))


@pytest.mark.parametrize("source_type", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_every_kind_of_source_builds_and_runs(tmp_path: Path, source_type: str) -> None:
    source = read_model(write_tiny_model(tmp_path / "s.gguf", dtype=source_type, tied=True))
    store = Store.create(tmp_path / "store", source.spec.identity)
    build_variant(source, make_plan(source.spec, ["int8", "int4", "int8"]), store, "v")
    assert len(generate(store.first_link("v"))) == 8


def test_tensors_of_odd_sizes_are_padded(tmp_path: Path) -> None:
    """36 rows of 64 weights as Q8_0 are 2448 bytes, no multiple of the alignment; rows of 36 stay F16."""
    source = read_model(write_tiny_model(tmp_path / "s.gguf", n_ff=36))
    store = Store.create(tmp_path / "store", source.spec.identity)
    build_variant(source, make_plan(source.spec, "int8"), store, "v")
    built = read_model(store.first_link("v")).tensors
    assert built["blk.0.ffn_gate.weight"].n_bytes % 32 == 16
    for name, tensor in built.items():
        expected = encode_rows(values_of(source.tensors[name]), tensor.spec.type)
        np.testing.assert_array_equal(data_of(tensor), expected)
    assert len(generate(store.first_link("v"))) == 8


def test_variants_share_the_layers_they_agree_on(tiny: ModelFile, store: Store) -> None:
    first = build_variant(tiny, make_plan(tiny.spec, ["int8", "int8", "int4"]), store, "a")
    second = build_variant(tiny, make_plan(tiny.spec, ["int8", "int4", "int4"]), store, "b")
    assert (first.n_shards, first.n_reused, second.n_reused) == (6, 0, 5)
    a, b = store.variant("a").shards, store.variant("b").shards
    assert [x.id == y.id for x, y in zip(a, b, strict=True)] == [True, True, False, True, True, True]
    assert second.written_bytes == b[2].n_bytes
    usage = store.usage()
    assert usage.joint_bytes == first.variant.n_bytes + second.written_bytes
    assert usage.unused_bytes == 0


def test_the_same_plan_under_another_name_costs_nothing(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")
    a, b = (build_variant(tiny, plan, store, name) for name in ("a", "b"))
    assert (b.n_reused, b.written_bytes) == (6, 0)
    assert b.variant.shards == a.variant.shards


def test_recipes_are_only_a_cache(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")
    a = build_variant(tiny, plan, store, "a").variant
    for path in (store.path / "recipes").rglob("*.json"):
        path.unlink()
    b = build_variant(tiny, plan, store, "b")
    assert b.n_reused == 0
    assert b.variant.shards == a.shards
    assert store.verify().n_shards == 6


def test_the_number_of_threads_changes_no_byte(tiny: ModelFile, tmp_path: Path) -> None:
    plan = make_plan(tiny.spec, ["int4", "int6", "int3"])
    stores = [Store.create(tmp_path / str(n), tiny.spec.identity) for n in (1, 7)]
    one, seven = (build_variant(tiny, plan, s, "v", n_threads=int(s.path.name)).variant for s in stores)
    assert one.shards == seven.shards


def test_building_the_same_again_returns_the_variant(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")
    first = build_variant(tiny, plan, store, "v").variant
    again = build_variant(tiny, dataclasses.replace(plan, policy="alpha"), store, "v")
    assert again.variant == first
    assert again.n_reused == 6


def test_a_taken_name_is_refused_before_any_work(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, "int4"), store, "v")
    before = store.verify()
    with pytest.raises(VariantExists, match="'v'"):
        build_variant(tiny, make_plan(tiny.spec, "int8"), store, "v")
    assert store.verify() == before


def test_a_variant_has_the_chat_template_of_the_file_it_is_built_from(tmp_path: Path) -> None:
    a, b = (read_model(write_tiny_model(tmp_path / f"{t}.gguf", chat_template=t)) for t in ("old", "new"))
    store = Store.create(tmp_path / "store", a.spec.identity)
    plan = make_plan(a.spec, "int4")
    before = build_variant(a, plan, store, "v").variant
    assert build_variant(b, plan, store, "w").n_reused == 5
    with pytest.raises(VariantExists, match="'v'"):
        build_variant(b, plan, store, "v")
    after = build_variant(b, plan, store, "v", replace=True).variant
    assert [x.id == y.id for x, y in zip(before.shards, after.shards, strict=True)] == [False] + [True] * 5
    for name in ("v", "w"):
        with Header.open(store.first_link(name)) as header:
            assert header.get("tokenizer.chat_template") == "new"


def test_a_model_that_no_note_can_name_is_refused(tmp_path: Path) -> None:
    source = read_model(write_tiny_model(tmp_path / "t\udcff.gguf"))
    store = Store.create(tmp_path / "store", source.spec.identity)
    with pytest.raises(InvalidRequest, match=r"t\\xff\.gguf' is not UTF-8; rename it"):
        build_variant(source, make_plan(source.spec, "int8"), store, "v")
    assert store.sources.unreadable() == ()
    assert store.variants() == ()


def test_a_missing_shard_is_made_again(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")
    variant = build_variant(tiny, plan, store, "v").variant
    store.shard_path(variant.shards[2].id).unlink()
    assert build_variant(tiny, plan, store, "v").n_reused == 5
    store.check(variant)


def test_another_model_is_refused(tiny: ModelFile, store: Store, tmp_path: Path) -> None:
    other = read_model(write_tiny_model(tmp_path / "o.gguf", n_embd=256, n_ff=512, seed=1, name="other"))
    with pytest.raises(StoreError, match=r"holds tiny .* not other"):
        build_variant(other, make_plan(other.spec, "int4"), store, "v")


def test_a_bad_name_is_refused_before_any_work(tiny: ModelFile, store: Store) -> None:
    with pytest.raises(InvalidRequest):
        build_variant(tiny, make_plan(tiny.spec, "int4"), store, "../v")
    assert store.verify().n_shards == 0


def test_not_finite_weights_are_refused_by_name_and_leave_a_valid_store(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf")
    victim = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "blk.1.attn_v.weight")
    victim.data[5, 5] = np.nan
    victim.data.flush()
    source = read_model(path)
    store = Store.create(tmp_path / "store", source.spec.identity)
    with pytest.raises(InvalidWeights, match=r"blk\.1\.attn_v\.weight"):
        build_variant(source, make_plan(source.spec, "int4"), store, "v")
    assert store.verify().ok
    assert store.variants() == ()
    assert list((store.path / "incoming").iterdir()) == []


# stopping and going on


def stop_after(n: int) -> Callable[[], bool]:
    """True from the n-th question on."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= n


@pytest.mark.parametrize("n_chunks", [0, 1, 12, 21, 27])
def test_a_stopped_build_goes_on_from_its_finished_shards(tiny: ModelFile, store: Store, n_chunks: int) -> None:
    plan = make_plan(tiny.spec, ["int4", "int8", "int2"])
    with pytest.raises(BuildStopped, match="of 6 shards") as stopped:
        build_variant(tiny, plan, store, "v", should_stop=stop_after(n_chunks))
    assert stopped.value.exit_code == 130
    assert list((store.path / "incoming").iterdir()) == []
    assert store.variants() == ()
    kept = store.verify()
    assert kept.ok
    finished = build_variant(tiny, plan, store, "v")
    assert finished.n_reused == kept.n_shards == 1 + n_chunks // 9  # the metadata, and layers of 9 tensors each
    store.check(finished.variant)


def test_ctrl_c_anywhere_leaves_a_valid_store(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")
    for after in (1, 8, 17):
        reports = iter(range(10**9))

        def interrupt(_: BuildProgress, reports: object = reports, after: int = after) -> None:
            if next(reports) == after:  # type: ignore[call-overload]
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_variant(tiny, plan, store, "v", on_progress=interrupt)
        assert store.verify().ok
        assert list((store.path / "incoming").iterdir()) == []
    store.check(build_variant(tiny, plan, store, "v").variant)


def test_progress_goes_up_to_the_total(tiny: ModelFile, store: Store) -> None:
    build_variant(tiny, make_plan(tiny.spec, ["int8", "int4", "int8"]), store, "a")
    seen: list[BuildProgress] = []
    build_variant(tiny, make_plan(tiny.spec, "int4"), store, "b", on_progress=seen.append)
    weights = [p.weights_done for p in seen]
    assert weights == sorted(weights)
    assert {p.label for p in seen} == {"layer 0", "layer 2"}
    assert (seen[0].n_done, seen[-1].n_done, seen[-1].n_shards) == (4, 6, 6)
    assert seen[-1].weights_done == seen[-1].weights_total == 2 * tiny.spec.layers[0].n_weights


def test_nothing_of_a_running_build_is_collected(tiny: ModelFile, store: Store) -> None:
    """Neither what it found, of a variant that is removed meanwhile, nor what it made and no variant has yet."""
    build_variant(tiny, make_plan(tiny.spec, ["int4", "int8", "int8"]), store, "gone")
    freed = []

    def collect(_: BuildProgress) -> None:
        if "gone" in store.variant_names():
            store.remove("gone")
        freed.append(store.collect_garbage().n_shards)

    report = build_variant(tiny, make_plan(tiny.spec, "int4"), store, "v", on_progress=collect)
    assert report.n_reused == 4  # metadata, one layer, embedding, head
    assert freed[0] == sum(freed) == 2  # the other two layers of the variant that went
    store.check(report.variant)


# builders of the same shards


@pytest.mark.parametrize("does_it_make_it", [True, False])
def test_a_shard_that_another_builder_has_claimed_is_waited_for(
    tiny: ModelFile, store: Store, does_it_make_it: bool
) -> None:
    plan = make_plan(tiny.spec, "int4")
    job = shard_jobs(tiny, plan)[1]
    seen: list[BuildProgress] = []
    with store.claims() as other, ThreadPoolExecutor(1) as pool:
        assert other.take(job.recipe_id)
        waiting = pool.submit(build_variant, tiny, plan, store, "v", on_progress=seen.append)
        while len(list(store.path.glob("recipes/*/*.json"))) < 5 or "another build" not in seen[-1].label:
            assert not waiting.done()
            time.sleep(0.005)
        time.sleep(2 * ASK_AGAIN_S)
        assert not waiting.done()
        assert seen[-1].label == "layer 0 (another build is making it)"
        if does_it_make_it:
            copy = Store.create(store.path.with_name("copy"), tiny.spec.identity)
            made = build_variant(tiny, plan, copy, "v").variant.shards[1]
            with store.lease() as lease, contextlib.closing(lease.new_shard(made.label, made.n_bytes)) as writer:
                writer.write(copy.shard_path(made.id).read_bytes())
                assert writer.commit() == made
            store.remember(job.recipe_id, job.recipe, made)
        other.release(job.recipe_id)
        report = waiting.result()
    store.check(report.variant)
    assert report.n_reused == does_it_make_it
    assert (seen[-1].n_done, seen[-1].weights_done) == (6, seen[-1].weights_total)


def test_waiting_for_another_builder_can_be_stopped(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int4")

    def all_but_one() -> bool:
        return len(list(store.path.glob("recipes/*/*.json"))) == 5

    with store.claims() as other:
        other.take(shard_jobs(tiny, plan)[-1].recipe_id)
        with pytest.raises(BuildStopped, match="5 of 6 shards"):
            build_variant(tiny, plan, store, "v", should_stop=all_but_one)


def test_progress_of_an_aborted_build_is_garbage_and_can_be_collected(tiny: ModelFile, store: Store) -> None:
    with pytest.raises(BuildStopped):
        build_variant(tiny, make_plan(tiny.spec, "int4"), store, "v", should_stop=stop_after(20))
    assert store.usage().unused_bytes > 0
    report = store.collect_garbage()
    assert report.n_shards == report.n_recipes == 3
    assert store.usage().unused_bytes == 0


# file systems that refuse


def test_a_disk_too_small_is_seen_before_any_work(tiny: ModelFile, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = Store.create(disk / "store", tiny.spec.identity)
        with pytest.raises(StorageFailed, match=r"6 shards need .* are free"):
            build_variant(tiny, make_plan(tiny.spec, "fp16"), store, "v")
        assert store.verify().n_shards == 0


def test_a_disk_that_becomes_full_leaves_a_valid_store_and_the_build_goes_on(tiny: ModelFile, tmp_path: Path) -> None:
    plan = make_plan(tiny.spec, "int8")
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        store, hog = Store.create(disk / "store", tiny.spec.identity), disk / "hog"

        def fill(progress: BuildProgress) -> None:
            if progress.label == "layer 1" and not hog.exists():
                free = os.statvfs(disk)
                hog.write_bytes(bytes(max(0, free.f_bavail - 8) * free.f_bsize))

        with pytest.raises(StorageFailed, match=r"No space left on device \(needs .*, .* are free\)"):
            build_variant(tiny, plan, store, "v", on_progress=fill)
        assert store.verify().ok
        assert list((store.path / "incoming").iterdir()) == []
        hog.unlink()
        report = build_variant(tiny, plan, store, "v")
        assert report.n_reused >= 1
        store.check(report.variant)


def test_a_read_only_disk_is_refused(tiny: ModelFile, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        store = Store.create(disk / "store", tiny.spec.identity)
        make_read_only(disk)
        with pytest.raises(StorageFailed, match="Read-only file system"):
            build_variant(tiny, make_plan(tiny.spec, "int8"), store, "v")


FORBIDDEN_BUILD = """
import os, sys
from pathlib import Path
from lamella.core.errors import StorageFailed
from lamella.llama.gguf import read_model
from lamella.quantize.build import build_variant
from lamella.store.store import Store
from tests.fakes.plans import make_plan

source = read_model(Path(sys.argv[1]))
os.chdir(sys.argv[2])  # names below are relative: another user cannot pass through the folders above
store = Store.create(Path("store"), source.spec.identity)
build_variant(source, make_plan(source.spec, "int4"), store, "before")  # nothing is left to import afterwards
os.chmod("store/incoming", 0o555)
if os.geteuid() == 0:  # root may write anywhere
    try:
        os.setgroups([])
        os.setuid(65534)
    except OSError as error:
        sys.exit(f"SKIP {error}")
try:
    build_variant(source, make_plan(source.spec, "int8"), store, "v")
except StorageFailed as error:
    print(error)
print([v.name for v in Store.open(Path("store")).variants()])
"""


def test_a_folder_without_write_permission_is_refused_with_the_path(tiny: ModelFile, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    child = subprocess.run(
        [sys.executable, "-c", FORBIDDEN_BUILD, str(tiny.paths[0]), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    if child.stderr.startswith("SKIP"):
        pytest.skip(f"becoming another user is not allowed here: {child.stderr}")
    assert child.returncode == 0, child.stderr
    refusal, variants = child.stdout.splitlines()
    assert re.fullmatch(r"cannot write store/leases/\w+: Permission denied", refusal)
    assert variants == "['before']"


def test_types_of_ggml_by_name_can_be_planned_per_tensor(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, "int8")
    chosen = {"blk.0.attn_q.weight": "Q5_1", "blk.0.ffn_up.weight": "IQ4_XS", "output.weight": "Q6_K"}
    types = {**plan.tensors, **chosen}
    build_variant(tiny, dataclasses.replace(plan, tensors=types), store, "v")
    built = read_model(store.first_link("v"))
    assert {t.name: t.type_name for t in built.spec.tensors} == types
    for name, type_name in chosen.items():
        expected = encode_rows(values_of(tiny.tensors[name]), GGML_TYPES[type_name])
        np.testing.assert_array_equal(data_of(built.tensors[name]), expected)
