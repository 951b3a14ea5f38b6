"""Importance matrix files: ours and llama-imatrix's are the same, and what is none is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import ArtifactError
from lamella.core.model import TensorSpec
from lamella.llama.gguf import read_model
from lamella.llama.imatrix import ColumnSums, ImportanceMatrix, read_imatrix, serialise_imatrix

DENSE = ColumnSums(np.array([[1, 4, 9, 0.5]], np.float32), np.array([4]))
EXPERTS = ColumnSums(np.array([[2, 4], [6, 8], [0, 0]], np.float32), np.array([2, 4, 0]))
MATRIX = ImportanceMatrix({"blk.0.b.weight": DENSE, "blk.0.a.weight": EXPERTS}, ("one.txt", "zwei.txt"), 7, 512, "ab")

Tensors = dict[str, NDArray[np.float32]]


def write_as_llama_imatrix(path: Path, change: Callable[[Tensors], None] = lambda _: None) -> Path:
    """A file of the gguf package, laid out as ``IMatrixCollector::save_imatrix`` does."""
    writer = reference.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.raw"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    tensors = {
        "blk.0.attn_q.weight.in_sum2": np.array([[8, 2, 4]], np.float32),
        "blk.0.attn_q.weight.counts": np.array([[2]], np.float32),
    }
    change(tensors)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_matrix_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(serialise_imatrix(MATRIX))
    found = read_imatrix(path)
    assert replace(found, sums={}) == replace(MATRIX, sums={})
    assert set(found.sums) == set(MATRIX.sums)
    for name, sums in MATRIX.sums.items():
        np.testing.assert_array_equal(found.sums[name].squares, sums.squares)
        np.testing.assert_array_equal(found.sums[name].counts, sums.counts)


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(serialise_imatrix(MATRIX))
    tensors = {t.name: t for t in reference.GGUFReader(path).tensors}
    assert list(tensors) == [f"blk.0.{w}.weight.{part}" for w in "ab" for part in ("in_sum2", "counts")]
    np.testing.assert_array_equal(tensors["blk.0.a.weight.in_sum2"].data, EXPERTS.squares)
    np.testing.assert_array_equal(tensors["blk.0.a.weight.counts"].data, [[2], [4], [0]])


def test_a_file_of_llama_imatrix_is_accepted(tmp_path: Path) -> None:
    found = read_imatrix(write_as_llama_imatrix(tmp_path / "m.gguf"))
    assert (found.datasets, found.chunk_count, found.chunk_tokens, found.structure) == (("wiki.raw",), 3, 512, "")
    np.testing.assert_array_equal(found.sums["blk.0.attn_q.weight"].means(), [[4, 1, 2]])


def test_means_are_sums_by_counts_and_one_for_experts_never_chosen() -> None:
    np.testing.assert_array_equal(DENSE.means(), [[0.25, 1, 2.25, 0.125]])
    np.testing.assert_array_equal(EXPERTS.means(), [[1, 2], [1.5, 2], [1, 1]])
    assert MATRIX.values("blk.9.a.weight") is None


def test_one_count_may_stand_for_all_matrices() -> None:
    stacked = ColumnSums(np.array([[2, 4], [6, 8]], np.float32), np.array([2]))
    np.testing.assert_array_equal(stacked.means(), [[1, 2], [3, 4]])


def _spoil(name: str, values: list[list[float]] | None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"blk.0.attn_q.weight.{name}"]
        if values is not None:
            tensors[f"blk.0.attn_q.weight.{name}"] = np.array(values, np.float32)

    return change


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (_spoil("in_sum2", [[1, np.nan, 2]]), r"NaN, infinite or negative sums for blk\.0\.attn_q\.weight"),
        (_spoil("in_sum2", [[1, -1, 2]]), "negative sums"),
        (_spoil("counts", [[np.inf]]), "infinite or negative counts"),
        (_spoil("counts", None), r"sums but no counts for blk\.0\.attn_q\.weight"),
        (_spoil("counts", [[1], [1]]), "3 sums do not go with 2 counts"),
        (_spoil("in_sum2", None), "holds no sums"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: Callable[[Tensors], None], fact: str) -> None:
    with pytest.raises(ArtifactError, match=fact):
        read_imatrix(write_as_llama_imatrix(tmp_path / "m.gguf", change))


def test_what_is_no_importance_matrix_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no importance matrix"):
        read_imatrix(tiny)
    legacy = tmp_path / "old.dat"
    legacy.write_bytes(b"\x01\0\0\0old format")
    with pytest.raises(ArtifactError, match="converts the older format"):
        read_imatrix(legacy)
    with pytest.raises(ArtifactError, match="No such file"):
        read_imatrix(tmp_path / "nowhere.gguf")


def test_a_matrix_of_another_model_is_refused_by_structure_or_by_the_tensor(tiny: Path) -> None:
    spec = read_model(tiny).spec
    name = "blk.1.ffn_down.weight"
    fits = ImportanceMatrix({name: ColumnSums(np.ones((1, 512), np.float32), np.array([1]))})
    fits.check_model(spec.identity, spec.tensors)
    with pytest.raises(ArtifactError, match="another model than tiny"):
        replace(fits, structure="0" * 64).check_model(spec.identity, spec.tensors)
    narrow = ImportanceMatrix({name: ColumnSums(np.ones((1, 256), np.float32), np.array([1]))})
    with pytest.raises(ArtifactError, match=r"256 values for tensor blk\.1\.ffn_down\.weight, which has 1 x 512"):
        narrow.check_model(spec.identity, spec.tensors)
    with pytest.raises(ArtifactError, match="knows no tensor of tiny"):
        ImportanceMatrix({"blk.77.x": DENSE}).check_model(spec.identity, spec.tensors)


def test_experts_have_columns_of_their_own(tiny: Path) -> None:
    identity = read_model(tiny).spec.identity
    tensor = TensorSpec("blk.0.a.weight", (2, 8, 3), "F16")
    MATRIX.check_model(identity=replace(identity, structure="ab"), tensors=[tensor])
    with pytest.raises(ArtifactError, match="4 x 2 columns"):
        MATRIX.check_model(replace(identity, structure="ab"), [replace(tensor, shape=(2, 8, 4))])
