"""NVIDIA devices through NVML: memory, load, temperature and power (ALCS panel 7).

    with NvidiaReader() as reader:
        reader.read()

The bindings are nvidia-ml-py (``pip install lamella[nvidia]``), imported when a reader is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lamella.core.closing import Closing
from lamella.qos.readers.reading import Absent

READER = "nvidia"
_MODULE = "pynvml"
_SLOWED_FOR_HEAT = 0x20 | 0x40  # software and hardware thermal slowdown, nvml.h: nvmlClocksEventReason*


@dataclass(frozen=True, slots=True)
class NvidiaDevice:
    """One device now; None where it does not tell.

    Attributes:
        name: what it calls itself.
        total_bytes, free_bytes: of its memory.
        load: share of the last moments in which it computed, 0 to 1.
        celsius: its temperature.
        watts: what it draws.
        joules: what it consumed since the driver was loaded.
        is_slowed_for_heat: it runs slower because it is hot.
    """

    name: str
    total_bytes: int
    free_bytes: int
    load: float | None
    celsius: float | None
    watts: float | None
    joules: float | None
    is_slowed_for_heat: bool | None


class NvidiaReader(Closing):
    """Holds NVML open."""

    def __init__(self, import_module: Callable[[str], Any] = importlib.import_module) -> None:
        """Open NVML, or note why that cannot be.

        Args:
            import_module: gives the bindings; raises ImportError.
        """
        self._nvml: Any = None
        self._absent = Absent(READER, "")
        try:
            nvml = import_module(_MODULE)
        except ImportError:
            self._absent = Absent(READER, "nvidia-ml-py is not installed (pip install 'lamella[nvidia]')")
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self._absent = Absent(READER, f"NVML does not start: {error}")
            return
        self._nvml = nvml

    def read(self) -> tuple[NvidiaDevice, ...] | Absent:
        """All devices now."""
        if self._nvml is None:
            return self._absent
        try:
            n_devices = self._nvml.nvmlDeviceGetCount()
            return tuple(self._device(self._nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(n_devices))
        except self._nvml.NVMLError as error:
            return Absent(READER, f"NVML fails: {error}")

    def close(self) -> None:
        """Let go of NVML; later calls do nothing."""
        if self._nvml is not None:
            self._absent = Absent(READER, "the reader was closed")
            nvml, self._nvml = self._nvml, None
            nvml.nvmlShutdown()

    def _device(self, handle: Any) -> NvidiaDevice:
        nvml = self._nvml
        name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", handle)
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        celsius = self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
        return NvidiaDevice(
            name=name.decode() if isinstance(name, bytes) else name,
            total_bytes=memory.total,
            free_bytes=memory.free,
            load=None if rates is None else rates.gpu / 100,
            celsius=None if celsius is None else float(celsius),
            watts=None if milliwatts is None else milliwatts / 1000,
            joules=None if millijoules is None else millijoules / 1000,
            is_slowed_for_heat=None if reasons is None else bool(reasons & _SLOWED_FOR_HEAT),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a function gives; None where the device or an older binding does not have it."""
        call = getattr(self._nvml, function, None)
        try:
            return None if call is None else call(*arguments)
        except self._nvml.NVMLError:
            return None
