"""An exported file is the variant, to the bit, in every reader of GGUF; or it is not there at all."""

from __future__ import annotations

import os
import re
import subprocess
import tracemalloc
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from lamella import api
from lamella.core.errors import InvalidRequest, ModelError, ShardDamaged, StorageFailed, UnknownVariant
from lamella.evaluating import Exams
from lamella.exchange.exporting import export_variant
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import read_model, read_tensors
from lamella.llama.model import Model
from lamella.resources.catalogue import model_path
from lamella.store.store import Store
from tests.fakes.disks import small_disk
from tests.fakes.matrices import make_matrix
from tests.fakes.tiny_model import write_tiny_model

VARIANTS = ("eight", "four", "exact")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_files_tensors_are_the_variants_bytes(store: Store, tmp_path: Path, name: str) -> None:
    """Read by the gguf package, a second reader."""
    report = export_variant(store, name, tmp_path / "x.gguf")
    assert report.n_bytes == (tmp_path / "x.gguf").stat().st_size
    found = {t.name: t for t in gguf.GGUFReader(report.path).tensors}
    stored = {n: t for path in store.shard_paths(report.variant) for n, t in read_tensors(path).items()}
    assert list(found) == list(stored)
    for tensor_name, tensor in stored.items():
        assert found[tensor_name].tensor_type.name == tensor.spec.type_name
        assert found[tensor_name].data_offset % 32 == 0
        expected = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
        assert found[tensor_name].data.tobytes() == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_computes_with_the_file_what_it_computes_with_the_shards(
    store: Store, tmp_path: Path, name: str
) -> None:
    path = export_variant(store, name, tmp_path / "x.gguf").path
    rows = []
    for paths in ((path,), store.shard_paths(store.variant(name))):
        with Model.load(paths) as model, Context(model, ContextOptions(n_ctx=64, n_threads=1)) as context:
            context.decode(model.vocabulary.tokenize("Once upon a time", add_special=True, parse_special=False), 0)
            rows.append(np.array(context.logits()))
    assert np.array_equal(rows[0], rows[1])
    assert np.ptp(rows[0]) > 0


def test_the_metadata_is_the_sources_and_says_what_the_file_is(store: Store, model: Path, tmp_path: Path) -> None:
    path = export_variant(store, "four", tmp_path / "x.gguf").path
    source, found = (
        {k: f.contents() for k, f in gguf.GGUFReader(p).fields.items() if not k.startswith("GGUF.")}
        for p in (model, path)
    )
    own = {k: found.pop(k) for k in list(found) if k.startswith("lamella.")}
    assert found == source | {"general.quantization_version": 2, "general.file_type": 14}
    assert (own["lamella.variant"], own["lamella.model.name"]) == ("four", "tiny")
    assert own["lamella.model.weights"] == read_model(model).spec.identity.weights
    assert own["lamella.weights"] == read_model(path).spec.identity.weights
    api.write_artifact(store.variant("four").plan, tmp_path / "plan.json")
    assert own["lamella.plan"] == (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize(("name", "kind"), [("eight", "Q8_0"), ("four", "Q4_K - Small"), ("exact", "F16")])
def test_llama_cpp_names_the_type_and_does_not_guess(store: Store, tmp_path: Path, name: str, kind: str) -> None:
    file_type = export_variant(store, name, tmp_path / "x.gguf").file_type
    assert llama_cpp.llama_ftype_name(file_type).decode() == kind


def test_the_importance_matrix_is_named(model: Path, tmp_path: Path) -> None:
    matrix = make_matrix(read_model(model).spec)
    plan = api.plan(model, "uniform", precision="int4")
    used = api.build(model, tmp_path / "store", plan, "v", importance=matrix).variant.plan.settings["importance_matrix"]
    path = api.export(tmp_path / "store", tmp_path / "x.gguf").path
    assert read_model(path).metadata["lamella.importance_matrix"] == used


@pytest.mark.parametrize("part", [0, 2])
def test_a_damaged_shard_is_not_exported(own_store: Store, tmp_path: Path, part: int) -> None:
    shard = own_store.variant("eight").shards[part]
    path = own_store.shard_path(shard.id)
    data = bytearray(path.read_bytes())
    data[-70 if part == 0 else -5] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    target = tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    target.write_bytes(b"of old")
    with pytest.raises(ShardDamaged, match=shard.id):
        export_variant(own_store, "eight", target, force=True)
    assert [p.read_bytes() for p in target.parent.iterdir()] == [b"of old"]


def test_a_shard_whose_header_is_broken_or_gone_is_named(own_store: Store, tmp_path: Path) -> None:
    shard = own_store.variant("eight").shards[1]
    path = own_store.shard_path(shard.id)
    path.chmod(0o644)
    path.write_bytes(b"GGUF" + bytes(shard.n_bytes - 4))
    with pytest.raises(ShardDamaged, match=r"layer 0 of eight.* damaged"):
        export_variant(own_store, "eight", tmp_path / "x.gguf")
    path.unlink()
    with pytest.raises(ShardDamaged, match="missing"):
        export_variant(own_store, "eight", tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))


def test_a_file_that_exists_is_kept_unless_forced(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(InvalidRequest, match=r"x\.gguf exists already.*--force"):
        export_variant(store, "four", target)
    assert target.read_bytes() == b"mine"
    export_variant(store, "four", target, force=True)
    assert len(read_model(target).tensors) == 30
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_comes_meanwhile_is_kept_too(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"

    def come(_done: int, _total: int, _what: str) -> None:
        target.write_bytes(b"faster")

    with pytest.raises(InvalidRequest, match="exists already"):
        export_variant(store, "four", target, on_progress=come)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"faster"]


def test_neither_a_folder_nor_the_store_itself_is_written_to(own_store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a folder"):
        export_variant(own_store, "eight", tmp_path, force=True)
    shard = own_store.shard_paths(own_store.variant("eight"))[0]
    with pytest.raises(InvalidRequest, match="inside the store"):
        export_variant(own_store, "eight", shard, force=True)
    assert own_store.verify().ok


def test_an_unknown_variant_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownVariant, match="eight, exact, four"):
        export_variant(store, "five", tmp_path / "x.gguf")
    with pytest.raises(InvalidRequest, match=r"3 variants; say which.*eight, exact, four"):
        api.export(store.path, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_seen_first(store: Store, tmp_path: Path) -> None:
    seen: list[int] = []
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(StorageFailed, match=r"No space left on device \(needs .*, .* are free\)"):
            export_variant(store, "exact", disk / "x.gguf", on_progress=lambda done, _total, _what: seen.append(done))
        assert list(disk.iterdir()) == []
    assert not seen


def test_a_disk_that_becomes_full_is_left_as_it_was(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        hog = disk / "hog"

        def fill(_done: int, _total: int, _what: str) -> None:
            if not hog.exists():
                free = os.statvfs(disk)
                hog.write_bytes(bytes(max(0, free.f_bavail - 8) * free.f_bsize))

        with pytest.raises(StorageFailed, match="No space left on device"):
            export_variant(store, "exact", disk / "x.gguf", on_progress=fill)
        assert list(disk.iterdir()) == [hog]


def test_a_missing_folder_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"nowhere/x\.gguf: No such file"):
        export_variant(store, "four", tmp_path / "nowhere" / "x.gguf")


def test_ctrl_c_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, _what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_variant(store, "four", tmp_path / "x.gguf", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_collected_meanwhile_and_progress_reaches_the_end(own_store: Store, tmp_path: Path) -> None:
    seen = []

    def collect(done: int, total: int, _what: str) -> None:
        seen.append((done, total))
        if "eight" in own_store.variant_names():
            own_store.remove("eight")
        own_store.collect_garbage()

    variant = export_variant(own_store, "eight", tmp_path / "x.gguf", on_progress=collect).variant
    assert seen == sorted(seen)
    assert seen[-1] == (variant.n_bytes, variant.n_bytes)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", n_layers=10, n_embd=256, n_ff=512)
    api.build(model, tmp_path / "store", api.plan(model, "uniform", precision="fp16"))
    tracemalloc.start()
    try:
        n_bytes = api.export(tmp_path / "store", tmp_path / "x.gguf").n_bytes
        assert tracemalloc.get_traced_memory()[1] < 3 << 20 < n_bytes // 4
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_perplexity_of_a_variant_is_llama_perplexitys_on_the_exported_file(tmp_path: Path) -> None:
    """Of the embedded model, in the default windows of 512 tokens: three digits."""
    rival = Path(os.environ.get("LAMELLA_RIVAL", "/nowhere")) / "llama-perplexity"
    if not rival.exists():
        pytest.skip("LAMELLA_RIVAL names no folder with llama-perplexity")
    try:
        model = model_path("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    words = ["The", "river", "of", "time", "runs", "to", "a", "sea", "that", "no", "map", "shows", "and", "back", ".\n"]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 1200)) + "\n")
    api.build(model, tmp_path / "store", api.plan(model, "uniform", precision="int4"), "v")
    path = api.export(tmp_path / "store", tmp_path / "v.gguf").path
    ours = api.evaluate(tmp_path / "store", ["v"], Exams(text=text, n_windows=2, kl=False)).rows["v"].text
    said = subprocess.run(
        [rival, "-m", path, "-f", text, "--chunks", "2", "--no-repack"], capture_output=True, text=True, check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(rival.parent)},
    )  # fmt: skip
    match = re.search(r"PPL = ([\d.]+)", said.stdout + said.stderr)
    assert match, said.stderr[-500:]
    assert ours is not None
    assert ours.perplexity.value == pytest.approx(float(match[1]), rel=1e-3)
