"""The weights of a loaded model: find them, point them at other memory, put them back.

A weight is a ``ggml_tensor`` that the model owns.  Its type, strides, buffer and data may be changed between two
decodes (never during one); the next graph uses what it finds.  Shapes and names never change.  Whoever supplies the
new memory keeps it alive while a weight points at it: here that is ``MappedShard`` and ``RepackedShard``.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import mmap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import EngineFailed, ModelError, TruncatedModel
from lamella.core.precision import GGML_TYPES, GgmlType
from lamella.llama import api, library, pages
from lamella.llama.api import tensor_at
from lamella.llama.context import ContextOptions
from lamella.llama.gguf import TensorData
from lamella.llama.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGNMENT = 64  # at least ggml's TENSOR_ALIGNMENT


@dataclass(frozen=True, slots=True)
class WeightState:
    """Where a weight's values are and how they are stored: the fields of ``ggml_tensor`` that a switch changes."""

    type_code: int
    strides: tuple[int, int, int, int]
    buffer: int | None
    data: int
    extra: int | None


def read_state(address: int) -> WeightState:
    """The present state of the ``ggml_tensor`` at ``address``."""
    tensor = tensor_at(address)
    return WeightState(tensor.type, tuple(tensor.nb), tensor.buffer, tensor.data, tensor.extra)


def write_state(address: int, state: WeightState) -> None:
    """Point the ``ggml_tensor`` at ``address`` elsewhere.  Only between decodes."""
    tensor = tensor_at(address)
    tensor.type = state.type_code
    tensor.nb[:] = state.strides
    tensor.buffer, tensor.data, tensor.extra = state.buffer, state.data, state.extra


VIEWS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
"""Operations whose result is the weight's own data: its address is taken when the graph is built (ggml_view_impl)."""


@dataclass(frozen=True, slots=True)
class LiveWeight:
    """A weight of a loaded model.

    Attributes:
        addresses: of its ``ggml_tensor``; two where llama.cpp made two tensors of a tied embedding.
        operations: ggml operations that read it, for example ``MUL_MAT`` or ``GET_ROWS``.
    """

    addresses: tuple[int, ...]
    operations: frozenset[str]

    @property
    def may_leave_host(self) -> bool:
        """Whether a device can have it: rows of the embedding are looked up on the host."""
        return "GET_ROWS" not in self.operations

    @property
    def is_only_multiplied(self) -> bool:
        """Whether a repacked copy can serve it: nothing but matrix products reads those."""
        return self.operations <= {"MUL_MAT", "MUL_MAT_ID"}

    @property
    def is_viewed(self) -> bool:
        """Whether a graph has views of it, which keep the address of its data as long as the graph is used again."""
        return not self.operations.isdisjoint(VIEWS)


def locate_weights(model: Model) -> dict[str, LiveWeight]:
    """Every weight that takes part in computing a token, by name.

    The addresses are read off the sources of each graph node in one decode of one token.  They belong to the model
    and stay valid until it is closed.

    Raises:
        EngineFailed: the model cannot decode a token.
    """
    addresses: dict[str, set[int]] = {}
    operations: dict[str, set[str]] = {}
    lib = library.load()

    def visit(node: int, _ask: bool, _: object) -> bool:
        operation = lib.base.ggml_op_name(tensor_at(node).op).decode()
        for source in tensor_at(node).src:
            if source:
                name = tensor_at(source).name.decode()
                if name.endswith((".weight", ".bias")):
                    addresses.setdefault(name, set()).add(source)
                    operations.setdefault(name, set()).add(operation)
        return False

    callback = lib.llama.ggml_backend_sched_eval_callback(visit)
    params = ContextOptions(n_ctx=32, n_batch=32).parameters()
    params.cb_eval = callback
    address = lib.llama.llama_init_from_model(model.address, params)
    if not address:
        raise EngineFailed("llama.cpp cannot create a context to look for the weights")
    try:
        token = (lib.llama.llama_token * 1)(max(model.vocabulary.bos, 0))
        if lib.llama.llama_decode(address, lib.llama.llama_batch_get_one(token, 1)) != 0:
            raise EngineFailed("llama.cpp cannot decode a token to look for the weights")
    finally:
        lib.llama.llama_free(address)
    return {n: LiveWeight(tuple(sorted(a)), frozenset(operations[n])) for n, a in addresses.items()}


class MappedShard:
    """A shard file mapped into memory, as a CPU buffer of ggml.  Owns mapping and buffer.

    Attributes:
        states: weight name -> state that points into the mapping.
        n_bytes: size of the file.
    """

    def __init__(self, path: Path, tensors: Collection[TensorData]) -> None:
        """Map ``path``; no page is read yet.

        Args:
            tensors: of the file, by its header.

        Raises:
            ModelError: the file is not there any more, or has been cut off.
            EngineFailed: the CPU device cannot use mapped memory.
        """
        lib = library.load()
        self._base = lib.base
        self._path = path
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise ModelError(f"{path}: {error}") from error
        self._bytes: Any = np.frombuffer(self._mapping, np.uint8)
        self.n_bytes = self._bytes.nbytes
        end = max((t.offset + t.n_bytes for t in tensors), default=0)
        if end > self.n_bytes:
            raise TruncatedModel(f"{path} is cut off: it has {self.n_bytes} of {end} bytes")
        self._start = int(self._bytes.ctypes.data)
        device = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
        largest = max((t.n_bytes for t in tensors), default=0)
        self._buffer = self._base.ggml_backend_dev_buffer_from_host_ptr(device, self._start, self.n_bytes, largest)
        if not self._buffer:
            raise EngineFailed("the CPU device cannot compute on mapped memory")
        self._base.ggml_backend_buffer_set_usage(self._buffer, api.BUFFER_USAGE_WEIGHTS)
        self.states = {
            t.spec.name: WeightState(
                t.spec.type.code, strides(t.spec.type, t.spec.shape), self._buffer, self._start + t.offset, None
            )
            for t in tensors
        }
        self._sizes = {t.spec.name: t.n_bytes for t in tensors}

    def prefault(self) -> None:
        """Read all pages in, so that the first token after a switch does not wait for the disk.

        Releases the interpreter lock; meant for a background thread.
        """
        if not pages.advise(self._start, self.n_bytes, pages.POPULATE_READ):
            int(self._bytes[:: mmap.PAGESIZE].sum())  # older kernels and other systems: touch each page

    def unmap(self, names: Iterable[str], *, from_cache: bool) -> None:
        """Let go of the pages of some weights, which stay readable: reading them brings them back, slowly.

        Pages that they share with other weights stay.  One of those that the kernel takes is read back alone: reading
        ahead would bring back the others.

        Args:
            from_cache: give them back to the kernel, but for those that some other process has mapped.
        """
        pages.advise(self._start, self.n_bytes, mmap.MADV_RANDOM)
        for start, n_bytes in _joined((self.states[n].data, self._sizes[n]) for n in names):
            pages.unmap(start, n_bytes)
            if from_cache:
                pages.drop_from_cache(self._path, start - self._start, n_bytes)

    def close(self, *, from_cache: bool = False) -> None:
        """Free buffer and mapping.  No weight may point here any more.

        Args:
            from_cache: as in ``unmap``, of the whole file.
        """
        if self._buffer:
            self._base.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._bytes = None
            with contextlib.suppress(BufferError):  # somebody still holds a view: unmapped with the last one
                self._mapping.close()
            if from_cache:
                pages.drop_from_cache(self._path)


class OwnWeight:
    """A weight's stored rows in memory of our own, as a CPU buffer of ggml.  Owns memory and buffer.

    Attributes:
        state: points into that memory.
    """

    def __init__(self, rows: NDArray[np.uint8], ggml_type: GgmlType, shape: tuple[int, ...]) -> None:
        """Copy ``rows``, which must be the whole weight as ``ggml_type`` stores it.

        Raises:
            EngineFailed: the CPU device cannot use this memory.
        """
        lib = library.load()
        self._base = lib.base
        memory = np.empty(rows.nbytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._memory: Any = memory[start : start + rows.nbytes]
        self._memory[:] = rows.reshape(-1)
        data = int(self._memory.ctypes.data)
        device = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
        self._buffer = self._base.ggml_backend_dev_buffer_from_host_ptr(device, data, rows.nbytes, rows.nbytes)
        if not self._buffer:
            raise EngineFailed("the CPU device cannot compute on memory of ours")
        self._base.ggml_backend_buffer_set_usage(self._buffer, api.BUFFER_USAGE_WEIGHTS)
        self.state = WeightState(ggml_type.code, strides(ggml_type, shape), self._buffer, data, None)

    def close(self) -> None:
        """Free buffer and memory.  No weight may point here any more."""
        if self._buffer:
            self._base.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._memory = None


class RepackedShard:
    """Copies of a mapped shard's matrices in the layout that ggml's CPU kernels multiply fastest.  Owns their buffer.

    Weights enter such a layout only by ``ggml_backend_tensor_alloc`` and ``ggml_backend_tensor_set``, which convert
    them; that is done on shadow tensors while the model runs, and a switch then copies the shadows' fields.

    Attributes:
        states: weight name -> state, for the matrices that could be repacked.
        n_bytes: size of the copies.
    """

    def __init__(self, shard: MappedShard, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Convert the matrices named in ``shapes``; those without a repacked layout on this machine are left out.

        Raises:
            EngineFailed: there is no memory for the copies.
        """
        lib = library.load()
        self._base = lib.base
        self._buffer: Any = None
        self.states: dict[str, WeightState] = {}
        self.n_bytes = 0
        buffer_type = repack_buffer_type(lib)
        if buffer_type is None or not shapes:
            return
        shadows = {name: shadow_of(name, shard.states[name], shape) for name, shape in shapes.items()}
        sizes = {name: aligned_size(buffer_type, shadow) for name, shadow in shadows.items()}
        self._buffer = self._base.ggml_backend_buft_alloc_buffer(buffer_type, sum(sizes.values()))
        if not self._buffer:
            raise EngineFailed(f"no memory for repacked copies of {sum(sizes.values())} bytes")
        self._base.ggml_backend_buffer_set_usage(self._buffer, api.BUFFER_USAGE_WEIGHTS)
        start = int(self._base.ggml_backend_buffer_get_base(self._buffer))
        pages.advise(start, sum(sizes.values()), pages.HUGE_PAGES)
        for name, shadow in shadows.items():
            if self._convert(name, shadow, shard.states[name], start + self.n_bytes):
                self.n_bytes += sizes[name]

    def _convert(self, name: str, shadow: Any, source: WeightState, target: int) -> bool:
        address = ct.addressof(shadow)
        code = self._base.ggml_backend_tensor_alloc(self._buffer, address, target)
        if code != 0 or not shadow.extra:  # no repacked layout for this type and shape on this machine
            return False
        self._base.ggml_backend_tensor_set(address, source.data, 0, self._base.ggml_nbytes(address))
        self.states[name] = WeightState(source.type_code, source.strides, self._buffer, shadow.data, shadow.extra)
        return True

    def close(self) -> None:
        """Free the copies.  No weight may point here any more."""
        if self._buffer:
            self._base.ggml_backend_buffer_free(self._buffer)
            self._buffer = None


def aligned_size(buffer_type: int, shadow: Any) -> int:
    """Bytes that a tensor takes in a buffer of that type, up to where the next one may begin."""
    base = library.load().base
    n_bytes: int = base.ggml_backend_buft_get_alloc_size(buffer_type, ct.addressof(shadow))
    alignment: int = base.ggml_backend_buft_get_alignment(buffer_type)
    return -(-n_bytes // alignment) * alignment


def shadow_of(name: str, state: WeightState, shape: tuple[int, ...]) -> Any:
    """A tensor of our own with a weight's type and shape and no memory yet."""
    shadow = api.Tensor(type=state.type_code, name=name.encode()[:63])
    shadow.ne[:] = [*shape, 1, 1, 1][: api.MAX_DIMS]
    shadow.nb[:] = state.strides
    return shadow


def repack_buffer_type(lib: library.Library) -> int | None:
    """ggml's buffer type for CPU-specific weight layouts, or None where there is none."""
    device = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    registry = lib.base.ggml_backend_dev_backend_reg(device)
    pointer = lib.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not pointer:
        return None
    buffer_types = api.GET_EXTRA_BUFTS(pointer)(device)
    i = 0
    while buffer_types and buffer_types[i]:
        if b"REPACK" in lib.base.ggml_backend_buft_name(buffer_types[i]):
            return int(buffer_types[i])
        i += 1
    return None


def release_pages(states: Iterable[tuple[WeightState, int]]) -> None:
    """Unmap the pages of memory-mapped weights that nothing reads any more; reading them again would only be slow.

    For the mapping that llama.cpp made when it loaded the model, which stays until the model is closed.

    Args:
        states: (where the weight was, its size in bytes).
    """
    for start, n_bytes in _joined((state.data, n_bytes) for state, n_bytes in states):
        pages.unmap(start, n_bytes)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (start, length) in order, those that touch as one: a page that two weights share goes with both.

    What lies between two ranges may be a weight that is still read, be it as small as a norm: only padding is joined.
    """
    joined: list[tuple[int, int]] = []
    for start, n_bytes in sorted(ranges):
        if joined and start - sum(joined[-1]) < _ALIGNMENT:
            first = joined[-1][0]
            joined[-1] = (first, max(sum(joined[-1]), start + n_bytes) - first)
        else:
            joined.append((start, n_bytes))
    return joined


def strides(ggml_type: GgmlType, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """``nb`` of a contiguous tensor: bytes between blocks, rows, matrices and so on (``ggml_new_tensor_impl``)."""
    ne = [*shape, 1, 1, 1][: api.MAX_DIMS]
    row = ggml_type.row_bytes(ne[0])
    return ggml_type.block_bytes, row, row * ne[1], row * ne[1] * ne[2]


def type_name(state: WeightState) -> str:
    """ggml type of a state, by name."""
    return next(t.name for t in GGML_TYPES.values() if t.code == state.type_code)
