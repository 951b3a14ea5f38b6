"""The weights of a shard in a device's memory.

    placed = DeviceShard(mapped, shapes, "CUDA0")
    write_state(address, placed.states["blk.0.ffn_up.weight"])       # between two decodes; then Context.rebuild_graph

Each shard has a buffer of its own, so that its memory is free again when it is closed.
"""

from __future__ import annotations

import ctypes as ct
from collections.abc import Mapping
from typing import Any

from lamella.core.errors import EngineFailed
from lamella.core.units import format_bytes
from lamella.llama import api, devices, library
from lamella.llama.weights import MappedShard, WeightState, aligned_size, shadow_of


class DeviceShard:
    """Copies of a mapped shard's weights on a device.  Owns their buffer.

    Weights are allocated and written as shadow tensors while the model runs; a switch then copies the shadows' fields.

    Attributes:
        states: weight name -> state that points into the device's memory.
        n_bytes: size of the buffer.
    """

    def __init__(self, shard: MappedShard, shapes: Mapping[str, tuple[int, ...]], device: str) -> None:
        """Copy the weights named in ``shapes`` to a device.

        Raises:
            InvalidRequest: there is no such device.
            EngineFailed: the device has no memory for them.
        """
        lib = library.load()
        self._base = lib.base
        buffer_type = self._base.ggml_backend_dev_buffer_type(devices.address(device))
        shadows = {name: shadow_of(name, shard.states[name], shape) for name, shape in shapes.items()}
        sizes = {name: aligned_size(buffer_type, shadow) for name, shadow in shadows.items()}
        self.n_bytes = sum(sizes.values())
        self._buffer: Any = self._base.ggml_backend_buft_alloc_buffer(buffer_type, self.n_bytes)
        if not self._buffer:
            raise EngineFailed(f"device {device} has no memory for {format_bytes(self.n_bytes)} of weights")
        self._base.ggml_backend_buffer_set_usage(self._buffer, api.BUFFER_USAGE_WEIGHTS)
        self.states: dict[str, WeightState] = {}
        target = int(self._base.ggml_backend_buffer_get_base(self._buffer))
        for name, shadow in shadows.items():
            self._place(name, shadow, shard.states[name], target)
            target += sizes[name]

    def _place(self, name: str, shadow: Any, source: WeightState, target: int) -> None:
        address = ct.addressof(shadow)
        if self._base.ggml_backend_tensor_alloc(self._buffer, address, target) != 0:
            self.close()
            raise EngineFailed(f"{name} cannot be placed in the device's buffer")
        self._base.ggml_backend_tensor_set(address, source.data, 0, self._base.ggml_nbytes(address))
        self.states[name] = WeightState(source.type_code, source.strides, self._buffer, shadow.data, shadow.extra)

    def close(self) -> None:
        """Free the copies.  No weight may point here any more."""
        if self._buffer:
            self._base.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
