"""Importance matrices: how large the inputs of each weight column are, in llama.cpp's own file format.

    matrix = read_imatrix(Path("model.imatrix.gguf"))
    matrix.values("blk.0.attn_q.weight")        # shape (1, row length): mean squared activation of each column

The file is what ``llama-imatrix`` writes and ``llama-quantize --imatrix`` reads (llama.cpp: tools/imatrix/imatrix.cpp,
common/imatrix-loader.cpp): a GGUF of ``general.type`` "imatrix" that holds for each weight ``<weight>.in_sum2``, the
sums of squares of its inputs, and ``<weight>.counts``, how many inputs were summed; one row for each expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import ArtifactError, ModelError
from lamella.core.model import ModelIdentity, TensorSpec
from lamella.llama.gguf import Header, Scalar, TensorData, padding

KIND = "imatrix"  # general.type
DATASETS, CHUNK_COUNT, CHUNK_TOKENS = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
STRUCTURE = "lamella.model.structure"  # ours; llama.cpp ignores it
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """Inputs of one weight, summed.

    Attributes:
        squares: sums of squares, shape (matrices, row length); one matrix, or one for each expert.
        counts: inputs summed, shape (matrices,) or (1,) where all matrices saw as many.
    """

    squares: NDArray[np.float32]
    counts: NDArray[np.int64]

    def means(self) -> NDArray[np.float32]:
        """Mean square of each column; 1 for experts that were never chosen (llama-quantize: ``load_imatrix``)."""
        counts = np.broadcast_to(self.counts, (len(self.squares),)).astype(np.float32)[:, None]
        means: NDArray[np.float32] = np.ones_like(self.squares)
        np.divide(self.squares, counts, out=means, where=counts > 0)
        return means


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Mean squared activation of each input column of a model's weights.

    Attributes:
        sums: by name of the weight.
        datasets: names of the texts it was gathered on.
        chunk_count: windows of text.
        chunk_tokens: tokens in each.
        structure: ``ModelIdentity.structure`` of the model; empty where the file does not say (llama-imatrix).
    """

    sums: Mapping[str, ColumnSums]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_tokens: int = 0
    structure: str = ""

    def values(self, name: str) -> NDArray[np.float32] | None:
        """Mean squares of a weight's columns, shape (matrices, row length); None for a weight it does not know."""
        found = self.sums.get(name)
        return None if found is None else found.means()

    def digest(self) -> str:
        """SHA-256 over all names and their mean squares: equal matrices round alike."""
        parts = (f"{name} {hash_values(self.sums[name].means())}\n" for name in sorted(self.sums))
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def check_model(self, identity: ModelIdentity, tensors: Iterable[TensorSpec]) -> None:
        """Refuse a matrix that was gathered on another model.

        Raises:
            ArtifactError: another structure, no tensor in common, or other columns or experts (named).
        """
        if self.structure and self.structure != identity.structure:
            raise ArtifactError(f"the importance matrix was gathered on another model than {identity.name}")
        known = [tensor for tensor in tensors if tensor.name in self.sums]
        if not known:
            raise ArtifactError(f"the importance matrix knows no tensor of {identity.name}")
        for tensor in known:
            n_matrices = n_experts(tensor)
            has = self.sums[tensor.name].squares.size
            if has != tensor.row_length * n_matrices:
                raise ArtifactError(
                    f"the importance matrix is of another model: it has {has} values for tensor {tensor.name}, "
                    f"which has {n_matrices} x {tensor.row_length} columns"
                )


def n_experts(tensor: TensorSpec) -> int:
    """Matrices in a tensor: each has columns of its own."""
    return tensor.shape[2] if len(tensor.shape) > 2 else 1


def hash_values(values: NDArray[np.float32]) -> str:
    """SHA-256 of mean squares, as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


def serialise_imatrix(matrix: ImportanceMatrix) -> bytes:
    """The bytes of the file, as llama-imatrix lays it out: names sorted, sums before counts, all F32."""
    parts: list[tuple[TensorSpec, NDArray[np.float32]]] = []
    for name in sorted(matrix.sums):
        squares, counts = matrix.sums[name].squares, matrix.sums[name].counts.astype(np.float32)
        folded = squares.reshape(len(counts), -1)
        parts += [
            (TensorSpec(name + SUMS, (folded.shape[1], len(counts)), "F32"), folded),
            (TensorSpec(name + COUNTS, (1, len(counts)), "F32"), counts),
        ]
    with Header.empty() as header:
        header.set("general.type", KIND, "str")
        header.set_strings(DATASETS, matrix.datasets)
        header.set(CHUNK_COUNT, matrix.chunk_count, "u32")
        header.set(CHUNK_TOKENS, matrix.chunk_tokens, "u32")
        if matrix.structure:
            header.set(STRUCTURE, matrix.structure, "str")
        start = header.serialise([(spec, "F32") for spec, _ in parts])
    data = [np.ascontiguousarray(values, "<f4").tobytes() for _, values in parts]
    return start + b"".join(piece + bytes(padding(len(piece))) for piece in data)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of ours or of llama-imatrix.

    Raises:
        ArtifactError: no such file, no importance matrix, sums without counts, NaN or negative values.
    """
    try:
        with Header.open(path) as header:
            if header.get("general.type") != KIND:
                raise ArtifactError(
                    f"{path} is no importance matrix: its general.type is {header.get('general.type')!r}"
                )
            tensors = {t.spec.name: t for t in header.tensors(path)}
            datasets = tuple(header.strings(DATASETS))
            described = {key: header.get(key) for key in (CHUNK_COUNT, CHUNK_TOKENS, STRUCTURE)}
    except ModelError as error:
        raise ArtifactError(
            f"{path} is no importance matrix that can be read: {error} "
            "(llama-imatrix --in-file OLD -o NEW.gguf converts the older format)"
        ) from None
    sums = {name.removesuffix(SUMS): _read_sums(path, name, tensors) for name in tensors if name.endswith(SUMS)}
    if not sums:
        raise ArtifactError(f"{path} is no importance matrix: it holds no sums")
    return ImportanceMatrix(
        sums,
        datasets,
        _count(path, CHUNK_COUNT, described[CHUNK_COUNT]),
        _count(path, CHUNK_TOKENS, described[CHUNK_TOKENS]),
        str(described[STRUCTURE] or ""),
    )


def _count(path: Path, key: str, said: Scalar | None) -> int:
    if said is None:
        return 0
    if type(said) is not int or said < 0:
        raise ArtifactError(f"{path}: {key} of the importance matrix is {said!r}, which is no count")
    return said


def _read_sums(path: Path, name: str, tensors: Mapping[str, TensorData]) -> ColumnSums:
    weight = name.removesuffix(SUMS)
    if weight + COUNTS not in tensors:
        raise ArtifactError(f"{path}: the importance matrix has sums but no counts for {weight}")
    squares, counts = _read_floats(tensors[name]), _read_floats(tensors[weight + COUNTS])
    if not counts.size or squares.size % counts.size:
        raise ArtifactError(f"{path}: {squares.size} sums do not go with {counts.size} counts for {weight}")
    for values, what in ((squares, "sums"), (counts, "counts")):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ArtifactError(f"{path}: the importance matrix has NaN, infinite or negative {what} for {weight}")
    return ColumnSums(squares.reshape(counts.size, -1), np.rint(counts).astype(np.int64))


def _read_floats(tensor: TensorData) -> NDArray[np.float32]:
    if tensor.spec.type_name != "F32":
        raise ArtifactError(f"{tensor.path}: {tensor.spec.name} is {tensor.spec.type_name}, not F32")
    return np.fromfile(tensor.path, "<f4", tensor.spec.n_weights, offset=tensor.offset)
