"""An imported file is a variant like any other: its own tensors, shared shards, live switches; or nothing changes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from lamella import api
from lamella.core.errors import (
    ArtifactError,
    InvalidRequest,
    InvalidWeights,
    NotGguf,
    StoreError,
    TruncatedModel,
    VariantExists,
)
from lamella.exchange.importing import import_file
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import read_model, read_tensors
from lamella.llama.model import Model
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.fakes.stock import stock_quantize
from tests.fakes.tiny_model import write_tiny_model

CONTEXT = ContextOptions(n_ctx=64, n_threads=1)


@pytest.fixture(scope="session")
def stock(model: Path) -> Path:
    """llama-quantize's Q4_K_M of the model: Q4_K with Q6_K in some tensors, in its own order."""
    return stock_quantize(model, model.with_name("tiny.Q4_K_M.gguf"), "Q4_K_M")


def shard_ids(store: Store, name: str) -> list[str]:
    return [shard.id for shard in store.variant(name).shards]


# what becomes of a file


def test_every_tensor_is_as_it_was(stock: Path, tmp_path: Path) -> None:
    report = import_file(stock, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    found = {n: t for path in store.shard_paths(report.variant) for n, t in read_tensors(path).items()}
    expected = {t.name: t for t in gguf.GGUFReader(stock).tensors}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        data = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
        assert data == expected[name].data.tobytes()
    assert store.verify().ok


def test_a_file_of_llama_quantize_shares_every_shard_with_the_same_types_built_here(
    model: Path, own_store: Store, tmp_path: Path
) -> None:
    """Both round as ggml does; llama-quantize writes its tensors in another order than the source has them."""
    path = stock_quantize(model, tmp_path / "q8.gguf", "Q8_0")
    assert list(read_model(path).tensors) != list(read_model(model).tensors)
    report = import_file(path, own_store.path)
    assert (report.n_shared, report.new_bytes) == (6, 0)
    assert shard_ids(own_store, "q8") == shard_ids(own_store, "eight")


def test_the_plan_says_where_it_comes_from_and_what_it_holds(stock: Path, tmp_path: Path) -> None:
    plan = import_file(stock, tmp_path / "store").variant.plan
    file = read_model(stock).spec
    assert (plan.policy, plan.scheme, plan.model) == ("imported", "block", file.identity)
    assert plan.settings["file"] == "tiny.Q4_K_M.gguf"
    assert len(str(plan.settings["sha256"])) == 64
    assert plan.tensors == {t.name: t.type_name for t in file.tensors}
    assert {x.precision for x in plan.layers} <= {"Q4_K", "Q5_K", "Q6_K", "mixed"}
    assert plan.bits_per_weight == pytest.approx(file.bits_per_weight)
    assert 4 < plan.average_bits < 7


def test_a_running_engine_switches_between_built_and_imported(stock: Path, own_store: Store) -> None:
    import_file(stock, own_store.path, "stock")
    with Engine.open(own_store, "eight", EngineOptions(CONTEXT, layout="mapped")) as engine:
        tokens = engine.tokenize("Once upon a time")
        for name in ("stock", "eight"):
            engine.switch(name)
            live = np.array(engine.logits(tokens))
            paths = (stock,) if name == "stock" else own_store.shard_paths(own_store.variant(name))
            with Model.load(paths) as fresh, Context(fresh, CONTEXT) as context:
                context.decode(tokens, 0)
                assert np.array_equal(live, context.logits()), name


def test_a_split_file_is_imported_from_any_part(store: Store, tmp_path: Path) -> None:
    folder = store.first_link("four").parent
    part = sorted(folder.glob("*.gguf"))[3]
    report = import_file(part, tmp_path / "store")
    assert report.variant.name == "four"
    assert [s.id for s in report.variant.shards] == shard_ids(store, "four")


def test_importing_again_changes_nothing(stock: Path, own_store: Store) -> None:
    first = import_file(stock, own_store.path)
    again = import_file(stock, own_store.path)
    assert again.variant == first.variant
    assert (again.n_shared, again.new_bytes) == (6, 0)


# there and back


@pytest.mark.parametrize("name", ["eight", "four", "exact"])
def test_export_and_import_give_the_same_variant_and_plan(store: Store, tmp_path: Path, name: str) -> None:
    path = api.export(store.path, tmp_path / "x.gguf", name).path
    report = import_file(path, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert report.from_export
    assert copy.variant(name) == store.variant(name)
    assert copy.identity == store.identity
    again = api.export(copy.path, tmp_path / "y.gguf").path
    assert again.read_bytes() == path.read_bytes()


def test_a_stock_file_survives_import_export_import(stock: Path, tmp_path: Path) -> None:
    first = import_file(stock, tmp_path / "one").variant
    path = api.export(tmp_path / "one", tmp_path / "x.gguf").path
    assert read_model(path).metadata["general.file_type"] == 15
    assert import_file(path, tmp_path / "two").variant == first


def test_a_store_made_of_an_exported_file_can_be_built_upon(store: Store, model: Path, tmp_path: Path) -> None:
    path = api.export(store.path, tmp_path / "x.gguf", "four").path
    import_file(path, tmp_path / "copy")
    api.build(model, tmp_path / "copy", api.plan(model, "uniform", precision="int8"), "eight")
    assert shard_ids(Store.open(tmp_path / "copy"), "eight") == shard_ids(store, "eight")


def test_an_exported_file_is_a_source_like_any_other(store: Store, tmp_path: Path) -> None:
    """What it says about itself does not get into the shards that are built from it."""
    path = api.export(store.path, tmp_path / "x.gguf", "exact").path
    api.build(path, tmp_path / "new", api.plan(path, "uniform", precision="int8"), "eight")
    assert shard_ids(Store.open(tmp_path / "new"), "eight") == shard_ids(store, "eight")


def test_what_another_tool_made_of_an_exported_file_is_no_export(store: Store, tmp_path: Path) -> None:
    """llama-quantize copies the keys it does not know, the plan among them."""
    path = api.export(store.path, tmp_path / "x.gguf", "exact").path
    changed = stock_quantize(path, tmp_path / "changed.gguf", "Q8_0")
    assert "lamella.plan" in read_model(changed).metadata
    report = import_file(changed, tmp_path / "new")
    assert not report.from_export
    assert (report.variant.name, report.variant.plan.policy) == ("changed", "imported")
    assert set(report.variant.plan.tensors.values()) == {"Q8_0", "F32"}


def test_the_importance_matrix_of_llama_quantize_is_remembered(stock: Path, tmp_path: Path) -> None:
    path = tmp_path / "imx.gguf"
    _copy_with(stock, path, {"quantize.imatrix.file": "wiki.dat", "quantize.imatrix.chunks_count": 125})
    plan = import_file(path, tmp_path / "store").variant.plan
    assert plan.settings["quantize.imatrix.file"] == "wiki.dat"
    exported = read_model(api.export(tmp_path / "store", tmp_path / "x.gguf").path).metadata
    assert exported["quantize.imatrix.file"] == "wiki.dat"
    assert exported["quantize.imatrix.chunks_count"] == 125


# one model, told by several tools


def test_the_stores_metadata_is_kept_and_differences_are_told(model: Path, own_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    _copy_with(model, path, {"general.name": "TINY", "tokenizer.chat_template": "{{ messages }}"})
    report = import_file(path, own_store.path)
    assert report.metadata_left_out == ("general.name", "tokenizer.chat_template")
    assert shard_ids(own_store, "renamed")[0] == shard_ids(own_store, "eight")[0]


def test_file_types_and_versions_are_no_difference(stock: Path, own_store: Store) -> None:
    assert read_model(stock).metadata["general.quantization_version"] == 2  # the source has none
    assert import_file(stock, own_store.path).metadata_left_out == ()


# refusals, which change nothing


def _refused(store: Store, path: Path, error: type[Exception], says: str) -> None:
    before = store.verify(), store.variant_names()
    with pytest.raises(error, match=says):
        import_file(path, store.path, "new")
    assert (store.verify(), store.variant_names()) == before
    assert list((store.path / "incoming").iterdir()) == []


def test_another_number_of_layers_is_refused(own_store: Store, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_embd=256, n_ff=512, n_layers=4)
    _refused(own_store, path, StoreError, r"holds tiny .*another model.* differs in llama\.block_count, blk\.3")


def test_a_head_of_its_own_where_the_store_has_none_is_refused(own_store: Store, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_embd=256, n_ff=512, tied=True)
    _refused(own_store, path, StoreError, r"differs in output\.weight\. One store")


def test_another_tokenizer_is_refused(model: Path, own_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes().replace(b"<pad0>", b"<pod0>"))
    _refused(own_store, path, StoreError, r"differs in tokenizer\.ggml\.tokens\. One store")


def test_other_weights_of_the_same_structure_are_refused(own_store: Store, tmp_path: Path) -> None:
    """Seen by the norms, which quantizing keeps."""
    path = write_tiny_model(tmp_path / "m.gguf", n_embd=256, n_ff=512, seed=1, dtype="Q8_0")
    _refused(own_store, path, StoreError, r"7 of 7 norms and biases, which quantizing keeps, have other values")


def test_another_structure_is_refused_by_a_store_without_variants(
    stock: Path, own_store: Store, tmp_path: Path
) -> None:
    own_store.remove("eight")
    path = write_tiny_model(tmp_path / "m.gguf", n_embd=256, n_ff=512, n_layers=4)
    _refused(own_store, path, StoreError, "another structure")
    import_file(stock, own_store.path)


def test_not_finite_weights_are_refused_by_name(model: Path, own_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(model.read_bytes())
    victim = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "blk.1.attn_v.weight")
    victim.data[5, 5] = np.nan
    victim.data.flush()
    with pytest.raises(InvalidWeights, match=r"blk\.1\.attn_v\.weight"):
        import_file(path, own_store.path)
    assert own_store.verify().ok
    assert own_store.variant_names() == ["eight"]


def test_a_name_taken_by_other_contents_is_refused(stock: Path, own_store: Store) -> None:
    before = own_store.verify()
    with pytest.raises(VariantExists, match="'eight'"):
        import_file(stock, own_store.path, "eight")
    assert own_store.verify() == before


def test_an_imported_name_is_not_built_over(stock: Path, model: Path, own_store: Store) -> None:
    import_file(stock, own_store.path, "stock")
    before = own_store.verify()
    with pytest.raises(VariantExists, match="'stock'"):
        api.build(model, own_store.path, api.plan(model, "uniform", precision="int4"), "stock")
    assert own_store.verify() == before


@pytest.mark.parametrize(
    ("keep", "error", "says"), [(2000, NotGguf, "cut off"), (-100, TruncatedModel, "is cut off"), (2, NotGguf, "no")]
)
def test_what_is_no_whole_file_makes_no_store(
    stock: Path, tmp_path: Path, keep: int, error: type[Exception], says: str
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(stock.read_bytes()[:keep])
    with pytest.raises(error, match=says):
        import_file(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_file_name_that_names_no_variant_asks_for_one(stock: Path, tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(stock.read_bytes())
    with pytest.raises(InvalidRequest, match="'my model' cannot name a variant"):
        import_file(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert import_file(path, tmp_path / "store", "mine").variant.name == "mine"


def test_a_plan_of_a_newer_format_is_refused(store: Store, tmp_path: Path) -> None:
    path = api.export(store.path, tmp_path / "x.gguf", "four").path
    data = path.read_bytes()
    assert data.count(b'"format_version": 1') == 1
    path.write_bytes(data.replace(b'"format_version": 1', b'"format_version": 9'))
    with pytest.raises(ArtifactError, match=r"x\.gguf: lamella\.plan has format version 9"):
        import_file(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def _copy_with(source: Path, target: Path, values: dict[str, str | int]) -> None:
    """The file with these keys added or replaced, written by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in (gguf.Keys.General.ARCHITECTURE, *values):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for name, value in values.items():
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
