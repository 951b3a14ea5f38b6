"""Small graphs of our own on a ggml device, to time what it does.

with Scratch(device) as scratch:
    matrix, vector = scratch.tensor("F32", 64, 32), scratch.tensor("F32", 64, 1)
    graph = scratch.graph([scratch.base.ggml_mul_mat(scratch.context, matrix, vector)])
    scratch.allocate("a matrix and a vector")
    scratch.compute(graph)
"""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed
from lamella.core.precision import GGML_TYPES
from lamella.llama import api, library

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CONTEXT_BYTES = 1 << 22  # of tensors' descriptions; their values are the device's


class Scratch(Closing):
    """A backend of a device, and tensors and graphs for it.  Owns all of them.

    Attributes:
        base: libggml-base, for the operations that a graph is made of.
        context: ``ggml_context`` that they are made in.
    """

    def __init__(self, device: int, n_threads: int | None = None) -> None:
        """Start the device's backend.

        Args:
            device: ggml's address of it.
            n_threads: of the CPU's; None for ggml's own choice.

        Raises:
            EngineFailed: the device cannot be used.
        """
        self.base = library.load().base
        self._backend = self.base.ggml_backend_dev_init(device, None)
        if not self._backend:
            raise EngineFailed("ggml cannot start the device's backend")
        self.context: Any = self.base.ggml_init(api.InitParams(_CONTEXT_BYTES, None, True))
        self._memory: Any = None
        if n_threads is not None:
            self._set_threads(device, n_threads)

    def _set_threads(self, device: int, n_threads: int) -> None:
        registry = self.base.ggml_backend_dev_backend_reg(device)
        pointer = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        if pointer:
            ct.CFUNCTYPE(None, ct.c_void_p, ct.c_int)(pointer)(self._backend, n_threads)

    def tensor(self, type_name: str, *shape: int) -> int:
        """A tensor without memory."""
        ne = (ct.c_int64 * len(shape))(*shape)
        return int(self.base.ggml_new_tensor(self.context, GGML_TYPES[type_name].code, len(shape), ne))

    def graph(self, results: Iterable[int]) -> int:
        """A graph that computes these nodes."""
        graph = int(self.base.ggml_new_graph(self.context))
        for result in results:
            self.base.ggml_build_forward_expand(graph, result)
        return graph

    def allocate(self, what: str) -> None:
        """Give memory of the device to all tensors and nodes that have none.

        Args:
            what: it is for, in the error.

        Raises:
            EngineFailed: there is none.
        """
        self._memory = self.base.ggml_backend_alloc_ctx_tensors(self.context, self._backend)
        if not self._memory:
            raise EngineFailed(f"the device has no memory for {what}")

    def write(self, tensor: int, values: NDArray[Any]) -> None:
        """All values of a tensor, from the beginning of an array that may be longer."""
        self.base.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, self.base.ggml_nbytes(tensor))

    def read(self, tensor: int, values: NDArray[Any]) -> None:
        """The other way."""
        self.base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, self.base.ggml_nbytes(tensor))

    def compute(self, graph: int) -> None:
        """Compute a graph, and wait for it.

        Raises:
            EngineFailed: the device could not.
        """
        if self.base.ggml_backend_graph_compute(self._backend, graph) != 0:
            raise EngineFailed("ggml could not compute")

    def close(self) -> None:
        """Free everything; later calls do nothing."""
        if self._memory:
            self.base.ggml_backend_buffer_free(self._memory)
        if self._backend:
            self.base.ggml_free(self.context)
            self.base.ggml_backend_free(self._backend)
        self._memory = self._backend = None
