"""Metrics of the weights alone: exact, without text, without a pass through the model.

Both read a layer's matrices; norms and biases are never quantized and do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InvalidWeights, UnsupportedTensor
from lamella.core.precision import MENU, GgmlType, Scheme, container
from lamella.llama.gguf import ModelFile, TensorData
from lamella.llama.quantize import decode_rows, encode_rows, prepare
from lamella.llama.rounding import quantize_rows, truncate_rows
from lamella.measuring.progress import Count, ignore, shifted
from lamella.measuring.rows import Piece, map_pieces, pieces

PRECISIONS = tuple(name for name, precision in MENU.items() if precision.bits < 16)
Z_SCORE = 1.0


@dataclass(frozen=True, slots=True)
class _Moments:
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def threshold(self) -> float:
        """Where the z-score reaches ``Z_SCORE``."""
        mean = self.total / self.n
        return mean + Z_SCORE * math.sqrt(max(0.0, self.squares / self.n - mean * mean))


def outlier_shares(model_file: ModelFile, *, n_threads: int = 0, on_weights: Count = ignore) -> tuple[float, ...]:
    """LWQ's z-score distribution: of each layer's weights, the share with (w - mean) / std > 1.

    One-sided, as LWQ defines it; mean and standard deviation are those of all weights of the layer's matrices.

    Args:
        on_weights: called with the number of weights done; every weight counts twice, because it is read twice.

    Raises:
        InvalidWeights: a tensor holds NaN or infinity.
    """
    todo = layer_pieces(model_file)
    moments = [_Moments()] * model_file.spec.n_layers
    found = map_pieces(_moments_of, todo, n_threads=n_threads, on_weights=on_weights)
    for piece, part in zip(todo, found, strict=True):
        moments[piece.layer] += part
    thresholds = [m.threshold for m in moments]
    n_read = sum(piece.n_weights for piece in todo)
    above = map_pieces(
        lambda piece: int(np.count_nonzero(piece.read() > thresholds[piece.layer])),
        todo,
        n_threads=n_threads,
        on_weights=shifted(on_weights, n_read),
    )
    counts = [0] * model_file.spec.n_layers
    for piece, n_above in zip(todo, above, strict=True):
        counts[piece.layer] += n_above
    return tuple(count / m.n for count, m in zip(counts, moments, strict=True))


def weight_differences(
    model_file: ModelFile, scheme: Scheme, *, n_threads: int = 0, on_weights: Count = ignore
) -> dict[str, tuple[float, ...]]:
    """DILEMMA's weight difference: norm of W - Q(W) relative to the norm of W, over each layer's matrices.

    Q is what a build would store.  A tensor that is already of the type that a build would choose is copied there, so
    it loses nothing here.  A precision that the scheme has no container for in some tensor of the model is left out.

    Returns:
        Precision -> one value a layer.

    Raises:
        InvalidWeights: a tensor holds NaN or infinity, or values that no build could store; names the tensor.
        UnsupportedTensor: the scheme fits no precision of the menu to this model.
    """
    todo = layer_pieces(model_file)
    names = _possible(todo, scheme)
    if scheme == "block":
        for ggml_type in {container(name, p.tensor.spec.row_length) for name in names for p in todo}:
            prepare(ggml_type)
    done = map_pieces(lambda piece: _errors_of(piece, names, scheme), todo, n_threads=n_threads, on_weights=on_weights)
    squares = np.zeros(model_file.spec.n_layers)
    errors = np.zeros((len(names), model_file.spec.n_layers))
    for piece, (square, lost) in zip(todo, done, strict=True):
        squares[piece.layer] += square
        errors[:, piece.layer] += lost
    relative = np.sqrt(np.divide(errors, squares, out=np.zeros_like(errors), where=squares > 0))
    return {name: tuple(map(float, row)) for name, row in zip(names, relative, strict=True)}


def layer_pieces(model_file: ModelFile) -> list[Piece]:
    """The matrices of every layer, piece by piece.

    Raises:
        UnsupportedTensor: a layer has none.
    """
    todo: list[Piece] = []
    for layer in model_file.spec.layers:
        if not layer.matrices:
            raise UnsupportedTensor(f"layer {layer.index} of {model_file.paths[0]} has no weight matrix")
        todo += pieces(layer.index, (model_file.tensors[t.name] for t in layer.matrices))
    return todo


def _moments_of(piece: Piece) -> _Moments:
    weights = piece.read()
    total = float(weights.sum(dtype=np.float64))
    _check_finite(total, piece.tensor)
    return _Moments(weights.size, total, _sum_of_squares(weights))


def _errors_of(piece: Piece, names: Sequence[str], scheme: Scheme) -> tuple[float, list[float]]:
    """Sum of squares of the weights, and of what each precision loses of them."""
    weights = piece.read()
    square = _sum_of_squares(weights)
    _check_finite(square, piece.tensor)
    if scheme != "block":
        return square, [_lost_by_row(weights, MENU[name].bits, piece.tensor, scheme) for name in names]
    by_type: dict[GgmlType, float] = {piece.tensor.spec.type: 0.0}
    lost = []
    for name in names:
        ggml_type = container(name, piece.tensor.spec.row_length)
        if ggml_type not in by_type:  # short rows have few types, which several precisions share
            back = decode_rows(encode_rows(weights, ggml_type), ggml_type, piece.tensor.spec.row_length)
            by_type[ggml_type] = _sum_of_squares(weights - back)
        lost.append(by_type[ggml_type])
    return square, lost


def _lost_by_row(weights: NDArray[np.float32], bits: int, tensor: TensorData, scheme: Scheme) -> float:
    try:
        levels, scales = quantize_rows(weights, bits) if scheme == "channel" else truncate_rows(weights, bits)
    except InvalidWeights as error:
        raise InvalidWeights(f"tensor {tensor.spec.name} of {tensor.path} {error}") from None
    return _sum_of_squares(weights - levels * scales.astype(np.float32)[:, None])


def _possible(todo: Sequence[Piece], scheme: Scheme) -> list[str]:
    lengths = {piece.tensor.spec.row_length for piece in todo}
    names = [name for name in PRECISIONS if all(_has_container(name, length, scheme) for length in lengths)]
    if not names:
        raise UnsupportedTensor(f"scheme {scheme} has no container for rows of {sorted(lengths)} weights")
    return names


def _has_container(name: str, row_length: int, scheme: Scheme) -> bool:
    try:
        container(name, row_length, scheme)
    except UnsupportedTensor:
        return False
    return True


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _check_finite(value: float, tensor: TensorData) -> None:
    if not math.isfinite(value):
        raise InvalidWeights(f"tensor {tensor.spec.name} of {tensor.path} holds NaN or infinity")
