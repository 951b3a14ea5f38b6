"""Headers: what is read is what ggml reads, and what is wrong is refused with the file's name."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf as reference
import numpy as np
import pytest

from lamella import api
from lamella.core.errors import ModelError, NotGguf, TruncatedModel, UnsupportedTensor
from lamella.llama.gguf import read_model
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model


def test_structure_equals_the_gguf_packages_reading(tiny: Path) -> None:
    model, expected = read_model(tiny), reference.GGUFReader(tiny)
    assert model.spec.identity.architecture == "llama"
    assert model.spec.n_layers == 3
    assert list(model.tensors) == [t.name for t in expected.tensors]
    for t in expected.tensors:
        found = model.tensors[t.name]
        assert found.spec.shape == tuple(int(n) for n in t.shape)
        assert (found.spec.type_name, found.offset, found.n_bytes) == (t.tensor_type.name, t.data_offset, t.n_bytes)


def test_identity_tells_weights_apart_but_not_precisions(tmp_path: Path) -> None:
    base = read_model(write_tiny_model(tmp_path / "a.gguf", seed=1)).spec.identity
    again = read_model(write_tiny_model(tmp_path / "b.gguf", seed=1)).spec.identity
    other = read_model(write_tiny_model(tmp_path / "c.gguf", seed=2)).spec.identity
    quantized = read_model(write_tiny_model(tmp_path / "d.gguf", seed=1, dtype="Q8_0")).spec.identity
    deeper = read_model(write_tiny_model(tmp_path / "e.gguf", seed=1, n_layers=4)).spec.identity
    assert base == again
    assert other.structure == base.structure
    assert other.weights != base.weights
    assert quantized.structure == base.structure
    assert quantized.weights != base.weights
    assert deeper.structure != base.structure


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.gguf: No such file"):
        read_model(tmp_path / "nowhere.gguf")


def test_another_kind_of_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model")
    with pytest.raises(NotGguf, match="not a GGUF file"):
        read_model(path)


@pytest.mark.parametrize("keep", [4, 16, 24, 200, 2000])
def test_a_header_cut_off_is_refused(tiny: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(NotGguf, match=r"cut\.gguf.*damaged or cut off"):
        read_model(path)


def test_data_cut_off_names_the_tensor_and_the_sizes(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    data = tiny.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(TruncatedModel, match=rf"tensor \S+ ends at byte {len(data)}, the file has {len(data) - 100}"):
        read_model(path)


def test_a_tensor_type_that_ggml_does_not_know_is_refused(tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8  # after n_dims and two dimensions
    data[at : at + 4] = struct.pack("<I", 999)
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises((NotGguf, UnsupportedTensor), match=r"odd\.gguf"):
        read_model(path)


def test_a_type_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ints.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_tensor("table", np.arange(32, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedTensor, match="tensor table has ggml type 26"):
        read_model(path)


def test_a_split_model_is_read_from_any_part(tiny: Path, tmp_path: Path) -> None:
    api.build(tiny, tmp_path / "store", api.plan(tiny, "uniform", precision="int8"), "eight")
    store = Store.open(tmp_path / "store")
    links = sorted(store.first_link("eight").parent.glob("*.gguf"))
    for link in (links[0], links[2]):
        model = read_model(link)
        assert model.spec.identity.structure == read_model(tiny).spec.identity.structure
        assert len(model.paths) == len(links)
    links[1].unlink()
    with pytest.raises(ModelError, match=r"1 are missing: eight-00002-of-00006\.gguf"):
        read_model(links[0])


@pytest.mark.parametrize("block_count", [0, 2])
def test_a_tensor_beyond_the_last_layer_is_named(tiny: Path, tmp_path: Path, block_count: int) -> None:
    data = bytearray(tiny.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4  # after the type
    data[at : at + 4] = struct.pack("<I", block_count)
    path = tmp_path / "deep.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"tensor blk\.{block_count}\.\S+ is .* {block_count} layers.*block_count"):
        read_model(path)


def test_a_block_count_that_is_no_count_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_string("llama.block_count", "many")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"block_count is 'many'"):
        read_model(path)


@pytest.mark.parametrize(("name", "what"), [(b"llama.context_length", "key"), (b"blk.1.ffn_up.weight", "tensor name")])
def test_names_that_are_not_utf8_are_refused(tiny: Path, tmp_path: Path, name: bytes, what: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny.read_bytes().replace(name, b"\xff" + name[1:]))
    with pytest.raises(NotGguf, match=rf"odd\.gguf.*{what} .* is not UTF-8"):
        read_model(path)
