"""What storing a tensor in another type changes in its products: errors of the weights, and of their inputs.

    errors_by_type(data, [GGML_TYPES["Q4_0"], GGML_TYPES["Q5_0"]], weights, inputs)     # {"Q4_0": 8.1, "Q5_0": 2.1}

The error of a type is the mean squared change of all outputs of a product, for inputs whose columns are uncorrelated:

    sum over rows and columns of (W - Q(W))^2 E[x^2]  +  W^2 E[(x - Q8(x))^2]

the second part because ggml rounds the inputs of quantized weights (``measuring.inputs``).  The ratio of two types'
errors is what their losses differ by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.cores import usable_cores
from lamella.core.errors import InvalidWeights
from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES, GgmlType
from lamella.llama.gguf import TensorData
from lamella.llama.imatrix import ImportanceMatrix, n_experts
from lamella.llama.quantize import decode_rows, encode_rows, prepare
from lamella.measuring.inputs import InputStatistics
from lamella.measuring.rows import PIECE_WEIGHTS, read_rows

SAMPLED_ROWS = 32
"""Rows that errors are taken from: they differ little from row to row, and some types are slow to write."""
RUN_ROWS = 8
MAX_EXPERTS = 8

LEFT_OUT = frozenset({"F32", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "NVFP4"})
"""Types that are not offered: larger than any source, or made for models trained in them."""


def offered_types(tensor: TensorSpec, has_importance: bool) -> tuple[GgmlType, ...]:
    """Types that a tensor may be stored in: its rows allow them, and ggml can write them with what is known."""
    return tuple(
        t
        for t in GGML_TYPES.values()
        if t.name not in LEFT_OUT and t.allows_row(tensor.row_length) and (t.writable or has_importance)
    )


def column_weights(tensor: TensorSpec, importance: ImportanceMatrix | None) -> NDArray[np.float32] | None:
    """Mean squared inputs of a tensor's columns, shape (experts, row length); None where they are not known."""
    values = importance.values(tensor.name) if importance else None
    return None if values is None else np.ascontiguousarray(values.reshape(n_experts(tensor), tensor.row_length))


def round_tensor(data: TensorData, target: GgmlType, weights: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """A whole tensor as ``target`` stores it, on all cores.

    Args:
        weights: ``column_weights`` of it.

    Raises:
        InvalidWeights: it holds NaN or infinity.
    """
    prepare(target)

    def encode(run: _Run) -> NDArray[np.uint8]:
        rows = read_rows(data, run.first_row, run.n_rows)
        _check_finite(rows, data)
        return encode_rows(rows, target, None if weights is None else weights[run.expert])

    with ThreadPoolExecutor(usable_cores(), "lamella-round") as pool:
        return np.concatenate(list(pool.map(encode, _all_rows(data.spec))))


def errors_by_type(
    data: TensorData,
    targets: Iterable[GgmlType],
    weights: NDArray[np.float32] | None,
    inputs: InputStatistics | None = None,
) -> dict[str, float]:
    """Error of each type, over evenly spaced rows; 0 for the type that the tensor has.

    Args:
        weights: ``column_weights`` of the tensor: rounding uses them, and errors count by them.
        inputs: what the tensor is multiplied by; None where it is only looked up.

    Raises:
        InvalidWeights: the rows hold NaN or infinity.
    """
    spec = data.spec
    runs = list(_sampled_rows(spec))
    rows = [read_rows(data, run.first_row, run.n_rows) for run in runs]
    for part in rows:
        _check_finite(part, data)
    energies = sum(np.square(part, dtype=np.float64).sum(axis=0) for part in rows)
    observed = None if inputs is None else inputs.mean_squares

    def of(target: GgmlType) -> float:
        total = 0.0
        for run, part in zip(runs, rows, strict=True):
            weight = None if weights is None else weights[run.expert]
            back = decode_rows(encode_rows(part, target, weight), target, spec.row_length)
            squares = np.square(part - back, dtype=np.float64).sum(axis=0)
            counts = weight if weight is not None else observed
            total += float(squares.sum() if counts is None else squares @ counts)
        return total + _input_error(spec.type, target, energies, inputs)

    return {target.name: of(target) if target != spec.type else 0.0 for target in targets}


def _input_error(
    source: GgmlType, target: GgmlType, energies: NDArray[np.float64], inputs: InputStatistics | None
) -> float:
    """What rounding the inputs adds, where the target has them rounded otherwise than the source."""
    if inputs is None or source.input_block == target.input_block:
        return 0.0
    changes = (inputs.rounding.get(t.input_block) for t in (source, target))
    return sum(float(energies @ change) for change in changes if change is not None)


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive rows of one expert."""

    expert: int
    first_row: int
    n_rows: int


def _all_rows(spec: TensorSpec) -> Iterator[_Run]:
    per_expert = spec.n_rows // n_experts(spec)
    step = max(1, PIECE_WEIGHTS // spec.row_length)
    for expert in range(n_experts(spec)):
        for first in range(0, per_expert, step):
            yield _Run(expert, expert * per_expert + first, min(step, per_expert - first))


def _sampled_rows(spec: TensorSpec) -> Iterator[_Run]:
    """Runs of ``RUN_ROWS``, as evenly spaced as they come, in at most ``MAX_EXPERTS`` experts."""
    n = n_experts(spec)
    per_expert = spec.n_rows // n
    experts = np.linspace(0, n - 1, min(n, MAX_EXPERTS)).astype(int)
    n_runs = max(1, min(SAMPLED_ROWS // len(experts), per_expert) // RUN_ROWS)
    for expert in map(int, experts):
        for i in range(n_runs):
            first = i * per_expert // n_runs
            yield _Run(expert, expert * per_expert + first, min(RUN_ROWS, per_expert - first))


def _check_finite(rows: NDArray[np.float32], data: TensorData) -> None:
    if not np.isfinite(rows).all():
        raise InvalidWeights(f"tensor {data.spec.name} of {data.path} holds NaN or infinity")
