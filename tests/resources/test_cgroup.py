"""The tightest group on the way to the root binds; page cache is available; both versions."""

from pathlib import Path

import pytest

from lamella.core.units import GIB, MIB
from lamella.resources.cgroup import MemoryLimit, memory_limit
from lamella.resources.machine import cpu_memory

UNLIMITED_V1 = 9223372036854771712
MEMINFO = "MemTotal:       24684096 kB\nMemFree:        19123396 kB\nMemAvailable:   24180312 kB\n"


def write(root: Path, files: dict[str, str | int]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def v2(root: Path, group: str, limit: int | str, usage: int, stat: str = "") -> None:
    folder = f"sys/fs/cgroup{group}"
    write(root, {f"{folder}/memory.max": limit, f"{folder}/memory.current": usage, f"{folder}/memory.stat": stat})


def v1(root: Path, group: str, limit: int, usage: int, stat: str = "") -> None:
    folder = f"sys/fs/cgroup/memory{group}"
    write(
        root,
        {
            f"{folder}/memory.limit_in_bytes": limit,
            f"{folder}/memory.usage_in_bytes": usage,
            f"{folder}/memory.stat": stat,
        },
    )


def test_version_2(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/user.slice/app.scope"})
    v2(tmp_path, "/user.slice/app.scope", 2 * GIB, GIB)
    assert memory_limit(tmp_path) == MemoryLimit("/sys/fs/cgroup/user.slice/app.scope", 2 * GIB, GIB)


def test_page_cache_is_available(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/app"})
    v2(tmp_path, "/app", 2 * GIB, 2 * GIB, f"anon {GIB}\ninactive_file {300 * MIB}\nactive_file {200 * MIB}\nfile 1")
    found = memory_limit(tmp_path)
    assert found is not None
    assert found.available_bytes == 500 * MIB


def test_a_tighter_parent_binds(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/pod/container"})
    v2(tmp_path, "/pod/container", 2 * GIB, 0)
    v2(tmp_path, "/pod", 3 * GIB, 3 * GIB - 100 * MIB)  # a sibling uses it
    assert memory_limit(tmp_path) == MemoryLimit("/sys/fs/cgroup/pod", 2 * GIB, 100 * MIB)


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/app"})
    v2(tmp_path, "/app", GIB, GIB + 5)
    found = memory_limit(tmp_path)
    assert found is not None
    assert found.available_bytes == 0


def test_version_1_recorded_in_a_container(tmp_path: Path) -> None:
    lines = "9:name=systemd:/\n5:devices:/\n4:memory:/process_api/8e66\n1:cpu:/\n0::/"
    write(tmp_path, {"proc/self/cgroup": lines})
    v1(tmp_path, "/process_api/8e66", UNLIMITED_V1, 14815232)
    v1(tmp_path, "", 4 * GIB, 3 * GIB, f"inactive_file 8192\ntotal_inactive_file {GIB}\ntotal_active_file {GIB // 2}")
    assert memory_limit(tmp_path) == MemoryLimit("/sys/fs/cgroup/memory", 4 * GIB, 5 * GIB // 2)


def test_the_path_may_only_exist_on_the_host(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "4:memory:/docker/3f2a"})
    v1(tmp_path, "", GIB, 0)
    found = memory_limit(tmp_path)
    assert found is not None
    assert found.limit_bytes == GIB


@pytest.mark.parametrize("limit", ["max", UNLIMITED_V1])
def test_no_limit(tmp_path: Path, limit: int | str) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/app"})
    v2(tmp_path, "/app", limit, GIB)
    assert memory_limit(tmp_path) is None


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None


def test_cpu_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    memory = cpu_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (24684096 * 1024, 24180312 * 1024)
    assert memory.limited_by == "machine"


def test_cpu_memory_under_a_limit(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app"})
    v2(tmp_path, "/app", 4 * GIB, GIB)
    memory = cpu_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 3 * GIB)
    assert memory.limited_by == "/sys/fs/cgroup/app"


def test_cpu_memory_of_a_busy_machine_with_a_wide_limit(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 1024 kB\n", "proc/self/cgroup": "0::/app"})
    v2(tmp_path, "/app", 4 * GIB, GIB)
    memory = cpu_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (4 * GIB, MIB, "machine")


def test_other_systems_ask_psutil(tmp_path: Path) -> None:
    assert cpu_memory(tmp_path).total_bytes > 0


def test_this_machine() -> None:
    memory = cpu_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
