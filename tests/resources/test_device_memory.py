"""The device with most free memory is chosen, unless one is named; the CPU's memory is the control group's."""

import pytest

from lamella.core.errors import InvalidRequest
from lamella.core.units import GIB
from lamella.llama.devices import Device
from lamella.resources.devices import DeviceMemory, choose, detect
from lamella.resources.machine import CpuMemory


def device(name: str, kind: str, free: int, total: int) -> Device:
    return Device(name, kind, f"a {kind}", name.rstrip("0123456789"), free * GIB, total * GIB)


def detected(*devices: Device, cpu: int = 8) -> tuple[DeviceMemory, ...]:
    return detect(lambda: devices, lambda: CpuMemory(16 * GIB, cpu * GIB, "/sys/fs/cgroup/app"))


CPU, GPU = device("CPU", "cpu", 60, 64), device("CUDA0", "gpu", 10, 12)


def test_cpu_memory_is_what_the_control_group_leaves() -> None:
    found = detected(GPU, CPU)
    assert [d.name for d in found] == ["CUDA0", "CPU"]
    assert (found[1].free_bytes, found[1].total_bytes) == (8 * GIB, 16 * GIB)
    assert found[1].limited_by == "/sys/fs/cgroup/app"
    assert (found[0].free_bytes, found[0].limited_by) == (10 * GIB, "device")


def test_integrated_graphics_share_the_limit() -> None:
    assert detected(device("Vulkan0", "igpu", 20, 32))[0].free_bytes == 8 * GIB


def test_most_free_memory_is_chosen() -> None:
    assert choose(detected(GPU, CPU)).name == "CUDA0"
    assert choose(detected(GPU, CPU, cpu=11)).name == "CPU"
    assert choose(detected(GPU, CPU, cpu=10)).name == "CUDA0"


def test_accelerators_hold_no_models() -> None:
    assert choose(detected(device("BLAS", "accelerator", 99, 99), CPU)).name == "CPU"


def test_a_named_device_is_taken() -> None:
    assert choose(detected(GPU, CPU), "cpu").name == "CPU"


def test_unknown_names_list_the_devices() -> None:
    with pytest.raises(InvalidRequest, match=r"'CUDA7'.*CUDA0, CPU"):
        choose(detected(GPU, CPU), "CUDA7")


def test_no_device_at_all() -> None:
    with pytest.raises(InvalidRequest, match="no device"):
        choose(())


def test_this_machine_has_a_cpu() -> None:
    assert any(d.kind == "cpu" and d.free_bytes > 0 for d in detect())
