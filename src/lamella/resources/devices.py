"""Every ggml device with its memory, and the choice among them (LSAQ's resource detection)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.llama import devices as ggml
from lamella.resources.machine import CpuMemory, cpu_memory


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device and the memory it has for us.

    Attributes:
        name, kind, description, backend: see ``lamella.llama.devices.Device``.
        free_bytes, total_bytes: of the device; for the CPU within the control group's limit.
        limited_by: ``device``, ``machine``, or the control group that limits the CPU's memory.
    """

    name: str
    kind: str
    description: str
    backend: str
    free_bytes: int
    total_bytes: int
    limited_by: str = "device"

    @property
    def holds_models(self) -> bool:
        """Whether weights can live there; accelerators (BLAS, AMX) compute in the CPU's memory."""
        return self.kind in ggml.HOLDS_WEIGHTS


def detect(
    list_devices: Callable[[], Sequence[ggml.Device]] = ggml.list_devices,
    read_cpu_memory: Callable[[], CpuMemory] = cpu_memory,
) -> tuple[DeviceMemory, ...]:
    """Every device, in ggml's order.

    Devices that share the CPU's memory (the CPU, integrated graphics) are bound by its control group.
    """
    cpu = read_cpu_memory()
    return tuple(_with_memory(device, cpu) for device in list_devices())


def choose(devices: Sequence[DeviceMemory], wanted: str | None = None) -> DeviceMemory:
    """The device to run on: the one named, else the one with most free memory (of equals one that is no CPU).

    Raises:
        InvalidRequest: no such device; lists those there are.
    """
    candidates = [d for d in devices if d.holds_models]
    names = ", ".join(d.name for d in candidates) or "none"
    if wanted:
        named = [d for d in candidates if d.name.lower() == wanted.lower()]
        if not named:
            raise InvalidRequest(f"there is no device '{wanted}' that can hold a model; there are: {names}")
        return named[0]
    if not candidates:
        raise InvalidRequest("ggml reports no device that can hold a model")
    return max(candidates, key=lambda d: (d.free_bytes, d.kind != "cpu"))


def _with_memory(device: ggml.Device, cpu: CpuMemory) -> DeviceMemory:
    free, total, limited_by = device.free_bytes, device.total_bytes, "device"
    if device.kind == "cpu":
        free, total, limited_by = cpu.available_bytes, cpu.total_bytes, cpu.limited_by
    elif device.kind == "igpu" and cpu.available_bytes < free:
        free, total, limited_by = cpu.available_bytes, min(total, cpu.total_bytes), cpu.limited_by
    return DeviceMemory(device.name, device.kind, device.description, device.backend, free, total, limited_by)
