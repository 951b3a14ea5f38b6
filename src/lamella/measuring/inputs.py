"""What weights are multiplied by: how large each column's input is, and what rounding the inputs costs.

ggml multiplies a quantized weight by inputs that it rounds, too: to 8 bits in blocks of 32 (``Q8_0``, ``Q8_1``) for the
``_0``, ``_1`` and 4-bit float types, in blocks of 256 (``Q8_K``) for K- and IQ-types, where one large input makes 255
others coarse.  That error is there however well the weight is rounded, and for 6 and 8 bits it is the larger one.  F16
weights do not have it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.observing import Product, ProductObserver
from lamella.measuring.calibration import Window

ROUNDED_BLOCKS = (32, 256)
LARGEST_CODE = 127  # of quantize_row_q8_0 and quantize_row_q8_K


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Inputs of one weight.

    Attributes:
        mean_squares: of each column, shape (row length,).
        rounding: block length -> mean squared change of each column when inputs are rounded in such blocks; block
            lengths that do not divide the row are not there.
    """

    mean_squares: NDArray[np.float64]
    rounding: Mapping[int, NDArray[np.float64]]


def gather_inputs(
    model: Model, weights: Collection[str], window: Window, n_threads: int = 0
) -> dict[str, InputStatistics]:
    """Read a window and look at the inputs of weights.

    Args:
        weights: their names; what is only looked up is not found.

    Returns:
        By name of the weight; inputs of all experts of a weight together.
    """
    sums: dict[str, _Sums] = {}

    def observe(product: Product) -> None:
        inputs = product.inputs.reshape(-1, product.inputs.shape[-1])
        sums.setdefault(product.weight, _Sums(inputs.shape[-1])).add(inputs)

    options = ContextOptions(len(window), n_batch=len(window), n_outputs=len(window), n_threads=n_threads)
    with Context(model, options, products=ProductObserver(weights.__contains__, observe)) as context:
        context.decode(window, 0, n_outputs=len(window))
    return {name: found.means() for name, found in sums.items()}


def rounding_change(inputs: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """What rounding takes from inputs: shape (tokens, row length), in blocks of ``block`` columns.

    As ``quantize_row_q8_0``: the largest of a block becomes 127, the others whole multiples of the same step.
    """
    blocks = inputs.reshape(len(inputs), -1, block)
    step = np.abs(blocks).max(axis=2, keepdims=True) / LARGEST_CODE
    codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0))
    change: NDArray[np.float32] = (blocks - codes * step).reshape(inputs.shape)
    return change


class _Sums:
    def __init__(self, row_length: int) -> None:
        self._n = 0
        self._squares = np.zeros(row_length)
        self._changes = {block: np.zeros(row_length) for block in ROUNDED_BLOCKS if row_length % block == 0}

    def add(self, inputs: NDArray[np.float32]) -> None:
        self._n += len(inputs)
        self._squares += np.einsum("td,td->d", inputs, inputs)
        for block, total in self._changes.items():
            change = rounding_change(inputs, block)
            total += np.einsum("td,td->d", change, change)

    def means(self) -> InputStatistics:
        return InputStatistics(self._squares / self._n, {b: total / self._n for b, total in self._changes.items()})
