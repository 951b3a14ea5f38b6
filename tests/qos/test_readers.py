"""Each reader alone, on recorded trees: a laptop, the same ten seconds later, a container, and nothing at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamella.qos.readers.battery import Battery, read_battery
from lamella.qos.readers.energy import Energy, EnergyCounter, joules_between, read_energy
from lamella.qos.readers.machine import MachineReader
from lamella.qos.readers.memory import Memory, read_memory
from lamella.qos.readers.nvidia import NvidiaDevice, NvidiaReader
from lamella.qos.readers.pressure import MemoryPressure, read_pressure
from lamella.qos.readers.processor import ProcessorTimes, own_tree, read_processor, taken_by_others
from lamella.qos.readers.reading import Absent
from lamella.qos.readers.temperature import Temperature, read_temperature

TREES = Path(__file__).parent / "trees"
LAPTOP, LATER, CONTAINER = TREES / "laptop", TREES / "laptop_later", TREES / "container"
ENGINE, SERVER = 501, 500


def no_nvidia() -> NvidiaReader:
    def missing(_: str) -> Any:
        raise ImportError

    return NvidiaReader(missing)


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def fake_nvml(**overrides: Any) -> Any:
    """The part of pynvml that is used, for one device of 24 GB."""
    functions: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda _: b"NVIDIA L4",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=24_000_000_000, free=20_000_000_000),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=75),
        "nvmlDeviceGetPowerUsage": lambda _: 61_500,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: 9_000_250,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x24,
        "nvmlDeviceGetTemperature": lambda _, __: 83,
    }
    return SimpleNamespace(**{**functions, **overrides})


def failing(*_: Any) -> Any:
    raise NvmlError("not supported")


def test_pressure_of_the_own_group_comes_before_the_machines() -> None:
    group = "/sys/fs/cgroup/user.slice/user-1000.slice/app.scope/memory.pressure"
    found = read_pressure(LAPTOP)
    assert found == MemoryPressure(group, 0.025, 0.0125, 1.5)
    assert found.is_own


def test_pressure_of_the_machine_where_the_group_tells_none(tmp_path: Path) -> None:
    shutil.copytree(LAPTOP / "proc", tmp_path / "proc")
    found = read_pressure(tmp_path)
    assert found == MemoryPressure("/proc/pressure/memory", 0.09, 0.075, 7.0)
    assert not found.is_own


@pytest.mark.parametrize("text", ["", "some avg10=1.00", "some avg10=x total=1\nfull avg10=x total=1", "full\nsome"])
def test_pressure_that_cannot_be_read_is_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_text(text)
    assert isinstance(read_pressure(tmp_path), Absent)


def test_memory_under_version_2_with_the_ancestors_limits() -> None:
    found = read_memory(LAPTOP)
    assert isinstance(found, Memory)
    assert [(g.limit_bytes, g.used_bytes) for g in found.groups] == [
        (3_000_000_000, 1_500_000_000),
        (4_000_000_000, 2_500_000_000),
        (None, 3_000_000_000),
    ]
    assert (found.total_bytes, found.available_bytes) == (3_000_000_000, 2_000_000_000)


def test_memory_under_version_1_is_bound_by_the_parent() -> None:
    found = read_memory(CONTAINER)
    assert isinstance(found, Memory)
    assert [g.limit_bytes for g in found.groups] == [1_000_000_000, 2_000_000_000, None]
    assert (found.total_bytes, found.available_bytes) == (1_000_000_000, 200_000_000)
    assert found.limited_by == "/sys/fs/cgroup/memory/docker"


def test_others_take_what_our_tree_does_not() -> None:
    before, after = read_processor(SERVER, LAPTOP), read_processor(SERVER, LATER)
    assert isinstance(before, ProcessorTimes)
    assert isinstance(after, ProcessorTimes)
    assert before.own == {500: 1000, 501: 4200}
    assert after.own == {500: 1000, 501: 4750, 502: 50}
    # busy 1400 of 2000 ticks, stolen ones included; ours 550 + 50
    assert taken_by_others(before, after) == pytest.approx(800 / 2000)


def test_a_tree_that_was_looked_for_before_is_read_again_without_what_is_new_or_gone() -> None:
    before = own_tree(SERVER, LAPTOP)
    assert before == [500, 501]
    found = read_processor(SERVER, LATER, [*before, 999])
    assert isinstance(found, ProcessorTimes)
    assert found.own == {500: 1000, 501: 4750}


def test_a_machine_reader_looks_for_its_tree_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[float]()

    def look(pid: int | None, root: Path) -> list[int]:
        looks.append(now)
        return own_tree(pid, root)

    monkeypatch.setattr("lamella.qos.readers.machine.own_tree", look)
    with MachineReader(SERVER, LAPTOP) as reader:
        for now in (100.0, 100.5, 104.9, 105.0, 105.5):
            sample = reader.read(now)
    assert looks == [100.0, 105.0]
    assert sample.others_share == 0.0


def test_a_process_with_brackets_in_its_name_is_read() -> None:
    found = read_processor(ENGINE, LAPTOP)
    assert isinstance(found, ProcessorTimes)
    assert found.own == {501: 4200}


def test_no_time_between_two_looks_is_no_share() -> None:
    times = ProcessorTimes(10, 20, {})
    assert taken_by_others(times, times) == 0.0


def test_the_hottest_plausible_sensor_counts() -> None:
    assert read_temperature(LAPTOP) == Temperature("x86_pkg_temp", 88.0, 95.0, 3 + 4 + 10)
    assert read_temperature(CONTAINER) == Temperature("k10temp", 61.25, None, 0)


def test_energy_counts_packages_and_memory_once() -> None:
    found = read_energy(LAPTOP)
    assert isinstance(found, Energy)
    assert set(found.counters) == {"intel-rapl:0", "intel-rapl:0:1"}


def test_energy_over_the_wrap_around_of_a_counter() -> None:
    before, after = read_energy(LAPTOP), read_energy(LATER)
    assert isinstance(before, Energy)
    assert isinstance(after, Energy)
    package = (262143328850 - 262143000000 + 1 + 149671149) / 1e6
    assert joules_between(before, after) == pytest.approx(package + 20)
    assert package == pytest.approx(150)


def test_a_counter_that_stands_at_its_end_moves_by_one() -> None:
    before, after = Energy({"z": EnergyCounter(99, 99)}), Energy({"z": EnergyCounter(0, 99)})
    assert joules_between(before, after) == pytest.approx(1e-6)


def test_energy_that_only_root_may_read_is_absent_with_that_reason(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    found = read_energy(tmp_path)
    assert isinstance(found, Absent)
    assert "root" in found.reason


def test_the_battery_is_the_machines_and_not_the_mouses() -> None:
    assert read_battery(LAPTOP) == Battery(charge=0.42, is_discharging=True, watts=1.5 * 12)


def test_nvidia_without_bindings_is_absent_and_says_what_to_install() -> None:
    found = no_nvidia().read()
    assert isinstance(found, Absent)
    assert "lamella[nvidia]" in found.reason


def test_nvidia_without_a_driver_is_absent() -> None:
    found = NvidiaReader(lambda _: fake_nvml(nvmlInit=failing)).read()
    assert isinstance(found, Absent)
    assert "not supported" in found.reason


def test_a_device_through_nvml() -> None:
    with NvidiaReader(lambda _: fake_nvml()) as reader:
        found = reader.read()
    expected = NvidiaDevice("NVIDIA L4", 24_000_000_000, 20_000_000_000, 0.75, 83.0, 61.5, 9000.25, True)
    assert found == (expected,)
    assert isinstance(reader.read(), Absent)


def test_what_a_device_does_not_tell_is_none() -> None:
    nvml = fake_nvml(nvmlDeviceGetPowerUsage=failing, nvmlDeviceGetUtilizationRates=failing)
    del nvml.nvmlDeviceGetCurrentClocksEventReasons  # an older binding
    found = NvidiaReader(lambda _: nvml).read()
    assert not isinstance(found, Absent)
    assert (found[0].watts, found[0].load, found[0].is_slowed_for_heat) == (None, None, None)


def test_a_device_that_fails_is_absent() -> None:
    assert isinstance(NvidiaReader(lambda _: fake_nvml(nvmlDeviceGetMemoryInfo=failing)).read(), Absent)


def test_a_machine_that_tells_nothing_is_absent_everywhere(tmp_path: Path) -> None:
    sample = MachineReader(SERVER, tmp_path, no_nvidia).read(1.0)
    assert {a.reader for a in sample.absent} == {
        "pressure", "memory", "processor", "temperature", "energy", "battery", "nvidia",
    }  # fmt: skip
    assert all(a.reason for a in sample.absent)


def test_the_whole_machine_has_rates_from_the_second_sample_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.symlink_to(LAPTOP)
    reader = MachineReader(SERVER, root, no_nvidia)
    first = reader.read(100.0)
    root.unlink()
    root.symlink_to(LATER)
    second = reader.read(110.0)
    assert (first.others_share, first.watts, first.is_slowed_for_heat) == (None, None, False)
    assert second.others_share == pytest.approx(0.4)
    assert second.watts == pytest.approx(17.0)
    assert second.is_slowed_for_heat  # one more core was throttled
    assert [a.reader for a in second.absent] == ["nvidia"]


def test_power_of_devices_is_added_to_the_processors() -> None:
    with MachineReader(SERVER, CONTAINER, lambda: NvidiaReader(lambda _: fake_nvml())) as reader:
        assert reader.read(1.0).watts == 61.5


def test_this_machine_can_be_read() -> None:
    with MachineReader() as reader:
        sample = reader.read(1.0)
        assert sample.memory is not None
        assert 0 < sample.memory.available_bytes <= sample.memory.total_bytes
