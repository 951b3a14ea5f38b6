"""What ggml can compute on, and how much memory each device says it has."""

from __future__ import annotations

import ctypes as ct
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.llama import library

HOLDS_WEIGHTS = ("cpu", "gpu", "igpu")
"""Kinds of devices that have memory; accelerators (BLAS, AMX) compute in the CPU's."""
_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}  # enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Device:
    """One ggml device.

    Attributes:
        name: ggml's name, for example ``CPU``, ``CUDA0``, ``Metal``; usable to choose it.
        kind: ``cpu``, ``gpu``, ``igpu`` or ``accelerator``.
        description: the hardware's own name.
        backend: ggml backend, for example ``CPU``, ``CUDA``, ``RPC``.
        free_bytes, total_bytes: as the backend reports; both 0 where it cannot tell.
    """

    name: str
    kind: str
    description: str
    backend: str
    free_bytes: int
    total_bytes: int


def list_devices() -> tuple[Device, ...]:
    """Every device of every loaded backend, in ggml's order."""
    lib = library.load()
    return tuple(_describe(lib, lib.ggml.ggml_backend_dev_get(i)) for i in range(lib.ggml.ggml_backend_dev_count()))


def address(name: str) -> int:
    """The ggml device of that name.

    Raises:
        InvalidRequest: there is none; lists those there are.
    """
    found = library.load().ggml.ggml_backend_dev_by_name(name.encode())
    if not found:
        known = ", ".join(d.name for d in list_devices())
        raise InvalidRequest(f"there is no device '{name}'; there are: {known}")
    return int(found)


def find(name: str) -> Device:
    """The device of that name.

    Raises:
        InvalidRequest: there is none; lists those there are.
    """
    return _describe(library.load(), address(name))


def besides_cpu(name: str | None) -> str | None:
    """The device that weights are copied to; None for no name, and for the CPU, where they are mapped.

    Raises:
        InvalidRequest: there is none, or it computes in the CPU's memory and holds no weights of its own.
    """
    if name is None:
        return None
    device = find(name)
    if device.kind not in HOLDS_WEIGHTS:
        raise InvalidRequest(f"device {device.name} ({device.kind}) holds no weights of its own; leave the choice out")
    return None if device.kind == "cpu" else device.name


def _describe(lib: library.Library, device: int) -> Device:
    base = lib.base
    free, total = ct.c_size_t(), ct.c_size_t()
    base.ggml_backend_dev_memory(device, ct.byref(free), ct.byref(total))
    return Device(
        name=base.ggml_backend_dev_name(device).decode(),
        kind=_KINDS.get(base.ggml_backend_dev_type(device), "other"),
        description=base.ggml_backend_dev_description(device).decode().strip(),
        backend=base.ggml_backend_reg_name(base.ggml_backend_dev_backend_reg(device)).decode(),
        free_bytes=free.value,
        total_bytes=total.value,
    )
