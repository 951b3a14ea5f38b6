"""A shard is a GGUF split file that depends on its layer and its types only (docs/store-format.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import pytest

from lamella.core.artifacts import Variant
from lamella.core.model import shard_groups
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.quantize.shard import shard_header
from lamella.store.store import Store
from tests.fakes.plans import make_plan


@pytest.fixture
def variant(tiny: ModelFile, store: Store) -> Variant:
    return build_variant(tiny, make_plan(tiny.spec, ["int8", "int4", "fp16"]), store, "mixed").variant


def test_shards_are_named_by_sha256_of_the_file(store: Store, variant: Variant) -> None:
    for shard, path in zip(variant.shards, store.shard_paths(variant), strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.id
        assert path.stat().st_size == shard.n_bytes


def test_shards_are_the_models_parts_in_split_order(tiny: ModelFile, store: Store, variant: Variant) -> None:
    assert [s.label for s in variant.shards] == ["meta", "layer 0", "layer 1", "layer 2", "embedding", "head"]
    for number, (path, group) in enumerate(zip(store.shard_paths(variant), shard_groups(tiny.spec), strict=True)):
        reader = gguf.GGUFReader(path)
        assert {k: reader.fields[k].contents() for k in reader.fields if k.startswith("split.")} == {
            "split.no": number,
            "split.count": 6,
            "split.tensors.count": len(tiny.spec.tensors),
        }
        types = {f.name: f.types[0] for f in reader.fields.values()}
        assert types["split.no"] == types["split.count"] == gguf.GGUFValueType.UINT16
        assert types["split.tensors.count"] == gguf.GGUFValueType.INT32
        assert [t.name for t in reader.tensors] == [t.name for t in group.tensors]


def test_tensors_are_aligned_and_of_the_planned_type(store: Store, variant: Variant) -> None:
    for path in store.shard_paths(variant):
        for tensor in gguf.GGUFReader(path).tensors:
            assert tensor.data_offset % 32 == 0
            assert tensor.tensor_type.name == variant.plan.tensors[tensor.name]


def test_the_metadata_shard_carries_the_tokenizer_and_nothing_about_types(
    tiny: ModelFile, store: Store, variant: Variant
) -> None:
    source, meta = gguf.GGUFReader(tiny.paths[0]), gguf.GGUFReader(store.shard_paths(variant)[0])
    described = {"general.file_type"}
    own = {"split.no", "split.count", "split.tensors.count"}
    names = {k for k in source.fields if not k.startswith("GGUF.")}
    assert {k for k in meta.fields if not k.startswith("GGUF.")} == names - described | own
    for name in names - described:
        assert meta.fields[name].contents() == source.fields[name].contents()


def test_a_variant_is_the_same_model_as_its_source(tiny: ModelFile, store: Store, variant: Variant) -> None:
    read = read_model(store.first_link(variant.name))
    assert read.spec.identity.structure == tiny.spec.identity.structure
    assert {t.name: t.shape for t in read.spec.tensors} == {t.name: t.shape for t in tiny.spec.tensors}


def test_a_shard_from_a_variant_as_source_is_the_same_shard(
    tiny: ModelFile, store: Store, variant: Variant, tmp_path: Path
) -> None:
    """Headers depend on structure and types only, so copying a variant's tensors makes the same files."""
    read = read_model(store.first_link(variant.name))
    copy = Store.create(tmp_path / "copy", read.spec.identity)
    again = build_variant(read, make_plan(read.spec, ["int8", "int4", "fp16"]), copy, "again").variant
    assert [s.id for s in again.shards] == [s.id for s in variant.shards]


def test_a_header_depends_on_the_types_given(tiny: ModelFile) -> None:
    group = list(shard_groups(tiny.spec))[1]
    f16 = [t.type_name for t in group.tensors]
    assert shard_header(tiny, group, f16) == shard_header(tiny, group, f16)
    assert shard_header(tiny, group, f16) != shard_header(tiny, group, ["F32"] * len(f16))
    assert len(shard_header(tiny, group, f16)) % 32 == 0
