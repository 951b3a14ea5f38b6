"""Seeing the nodes of a graph while llama.cpp computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed
from lamella.core.precision import GGML_TYPES
from lamella.llama import api, library

Observer = Callable[[str, NDArray[np.float32]], bool | None]
"""Receives (node name, values of shape (rows, row length)); the array is the observer's to keep.

Returning False leaves the rest of the pass uncomputed (the logits are then undefined)."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of the graph, seen from its weight (``MUL_MAT``, ``MUL_MAT_ID``).

    Attributes:
        weight: name of the weight.
        n_matrices: matrices in the weight: its experts; 1 for most.
        inputs: what the weight is multiplied by, shape (tokens, slots, row length).  For experts a slot is one of the
            experts chosen for a token, or 1 where all of them see the same input; for stacked weights of
            ``MUL_MAT`` it is the matrix; otherwise it is 1.
        experts: expert of each token and slot, shape (tokens, chosen); None for ``MUL_MAT``.
    """

    weight: str
    n_matrices: int
    inputs: NDArray[np.float32]
    experts: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class ProductObserver:
    """Sees the inputs of weights, each when its product was computed.

    Attributes:
        wants: whether the products of a weight are of interest, by its name.
        observe: receives a product; the arrays are its to keep.
        last_node: graph node after which the pass may end, uncomputed; "" for none.
    """

    wants: Callable[[str], bool]
    observe: Callable[[Product], None]
    last_node: str = ""


Visit = Callable[[int, bool], bool]
"""``visit(node, ask)``: whether a node is wanted, and then, once it was computed, whether to go on."""


def nodes(wants: Callable[[str], bool], observe: Observer) -> Visit:
    """A visit that shows ``observe`` the values of the nodes that ``wants`` names."""
    base = library.load().base

    def visit(node: int, ask: bool) -> bool:
        tensor = api.tensor_at(node)
        name = tensor.name.decode()
        if ask:
            return wants(name)
        values = np.empty((tensor.ne[1] * tensor.ne[2] * tensor.ne[3], tensor.ne[0]), np.float32)
        base.ggml_backend_tensor_get(node, values.ctypes.data, 0, values.nbytes)
        return observe(name, values) is not False

    return visit


def weight_inputs(products: ProductObserver) -> Visit:
    """A visit that shows ``products`` what the weights it wants are multiplied by."""

    def visit(node: int, ask: bool) -> bool:
        tensor = api.tensor_at(node)
        if products.last_node and tensor.name.decode() == products.last_node:
            return ask
        weight = _weight_of_product(tensor)
        if ask:
            return weight is not None and products.wants(weight)
        if weight is not None:
            products.observe(_read_product(tensor, weight))
        return True

    return visit


@functools.cache
def _operation(code: int) -> str:
    name: bytes = library.load().base.ggml_op_name(code)
    return name.decode()


def _weight_of_product(tensor: Any) -> str | None:
    """Name of the weight of a matrix product with float inputs; None for other nodes (imatrix.cpp)."""
    if _operation(tensor.op) not in ("MUL_MAT", "MUL_MAT_ID"):
        return None
    if api.tensor_at(tensor.src[1]).type != GGML_TYPES["F32"].code:
        return None
    name: str = api.tensor_at(tensor.src[0]).name.decode()
    return name.split("#")[1] if "#" in name else name  # "CUDA0#blk.0.attn_k.weight#0" is a copy for a device


def _read_product(tensor: Any, weight: str) -> Product:
    """Copy inputs and chosen experts of a matrix product out of the graph."""
    matrices = api.tensor_at(tensor.src[0])
    n_matrices = matrices.ne[2] * matrices.ne[3]
    inputs = _read_tensor(tensor.src[1], np.float32)  # (outermost, matrices or tokens, rows or slots, row length)
    if _operation(tensor.op) == "MUL_MAT_ID":
        experts = _read_tensor(tensor.src[2], np.int32)[0, 0]
        return Product(weight, n_matrices, inputs[0], experts)
    if n_matrices == 1:
        return Product(weight, 1, inputs.reshape(-1, 1, inputs.shape[-1]), None)
    if inputs.shape[0] != 1 or inputs.shape[1] != n_matrices:
        raise EngineFailed(f"weight {weight} of {n_matrices} matrices is multiplied by inputs of shape {inputs.shape}")
    return Product(weight, n_matrices, inputs[0].transpose(1, 0, 2), None)


def _read_tensor(address: int, dtype: Any) -> Any:
    """Values of a tensor of 4-byte numbers, wherever they are and however strided; outermost dimension first."""
    base, tensor = library.load().base, api.tensor_at(address)
    raw = np.empty(base.ggml_nbytes(address), np.uint8)
    base.ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.nbytes)
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    return np.lib.stride_tricks.as_strided(raw.view(dtype), shape, strides, writeable=False)
