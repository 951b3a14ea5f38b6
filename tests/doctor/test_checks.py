"""Machines made wrong on purpose: each is found out, with a cure, and the code that whoever ran into it would see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.core.units import GIB, MIB
from lamella.doctor import Diagnosis, Facts, Finding, Status, diagnose
from lamella.doctor.facts import Compiler, Disk, LibraryFacts, ModelNeed, Processor, StoreFacts
from lamella.resources.devices import DeviceMemory
from lamella.resources.machine import CpuMemory

CPU = DeviceMemory("CPU", "cpu", "A processor", "CPU", 6 * GIB, 8 * GIB, "machine")
GOOD = Facts(
    system="Python 3.11.7, Linux 6.1, x86_64",
    compiler=Compiler("/usr/bin/c++", "c++ 12.2.0"),
    processor=Processor("A processor", frozenset({"avx", "avx2", "fma", "f16c", "bmi2", "sse4_2"}), 4, 4),
    library=LibraryFacts("0.3.36", "", frozenset({"AVX", "AVX2", "FMA", "F16C", "BMI2", "REPACK"}), ("CPU",), True),
    memory=CpuMemory(8 * GIB, 6 * GIB),
    disk=Disk("/home/me/.cache/lamella", 50 * GIB),
    devices=(CPU,),
    need=ModelNeed("smollm2", "", 252 * MIB, 98 * MIB, 4096, 98 * MIB, 360 * MIB),
    stores=(StoreFacts("/home/me/store", n_variants=3),),
)


def of(diagnosis: Diagnosis, check: str) -> Finding:
    (found,) = [f for f in diagnosis.findings if f.check == check]
    return found


def only_bad(facts: Facts) -> Finding:
    """The one finding that is not fine."""
    (found,) = [f for f in diagnose(facts).findings if f.status is not Status.OK]
    assert found.cure
    return found


def test_a_good_machine_has_nothing_wrong() -> None:
    diagnosis = diagnose(GOOD)
    assert [f.status for f in diagnosis.findings] == [Status.OK] * 9
    assert not any(f.cure for f in diagnosis.findings)
    assert diagnosis.exit_code == 0


def test_a_library_without_rpc_is_a_warning_with_the_command_that_builds_it() -> None:
    facts = replace(GOOD, library=replace(GOOD.library, has_rpc=False))
    found = only_bad(facts)
    assert (found.check, found.status) == ("RPC", Status.WARNING)
    assert "-DGGML_RPC=ON" in found.cure
    assert "llama-cpp-python==0.3.36" in found.cure
    assert diagnose(facts).exit_code == 0


def test_no_compiler_matters_only_where_llama_cpp_must_be_built() -> None:
    found = only_bad(replace(GOOD, compiler=Compiler()))
    assert (found.check, found.status) == ("compiler", Status.WARNING)
    assert "apt install g++" in found.cure
    broken = diagnose(replace(GOOD, compiler=Compiler(), library=LibraryFacts(error="it is not installed")))
    assert [f.check for f in broken.problems] == ["compiler", "llama.cpp"]
    assert broken.exit_code == 8


def test_a_library_that_does_not_load_is_a_problem_and_nothing_is_said_of_its_devices() -> None:
    diagnosis = diagnose(
        replace(GOOD, library=LibraryFacts("0.3.36", "ggml_tensor is not laid out as known"), devices=())
    )
    assert of(diagnosis, "llama.cpp").status is Status.PROBLEM
    assert "not laid out" in of(diagnosis, "llama.cpp").found
    assert "-DGGML_NATIVE=ON" in of(diagnosis, "llama.cpp").cure
    assert not {"devices", "RPC", "processor"} & {f.check for f in diagnosis.findings}
    assert diagnosis.exit_code == 8


def test_instructions_that_the_library_leaves_unused_are_named() -> None:
    processor = replace(GOOD.processor, flags=GOOD.processor.flags | {"avx512f", "avx512_vnni"})
    found = only_bad(replace(GOOD, processor=processor))
    assert "built without AVX512, AVX512_VNNI" in found.found
    assert "-DGGML_NATIVE=ON" in found.cure


def test_cores_that_this_process_may_not_use_are_not_counted() -> None:
    facts = replace(GOOD, processor=replace(GOOD.processor, n_usable=2))
    assert "4 cores, of which this process may use 2" in of(diagnose(facts), "processor").found


@pytest.mark.parametrize(("maker", "backend", "option"), [("NVIDIA", "CUDA", "GGML_CUDA"), ("AMD", "ROCm", "GGML_HIP")])
def test_a_gpu_that_the_library_cannot_use_is_named(maker: str, backend: str, option: str) -> None:
    found = only_bad(replace(GOOD, graphics=(maker,)))
    assert (found.check, found.status) == ("devices", Status.WARNING)
    assert f"-D{option}=ON" in found.cure
    fine = replace(GOOD, graphics=(maker,), library=replace(GOOD.library, backends=("CPU", backend)))
    assert of(diagnose(fine), "devices").status is Status.OK


def test_a_memory_limit_below_the_smallest_plan_is_a_problem_that_names_limit_and_need() -> None:
    limited = CpuMemory(200 * MIB, 150 * MIB, "/sys/fs/cgroup/box")
    facts = replace(GOOD, memory=limited)
    found = only_bad(facts)
    assert (found.check, found.status) == ("memory", Status.PROBLEM)
    assert "/sys/fs/cgroup/box" in found.found
    assert "252 MiB" in found.found
    assert "docker run --memory" in found.cure
    assert diagnose(facts).exit_code == 4
    machine = only_bad(replace(GOOD, memory=CpuMemory(200 * MIB, 150 * MIB)))
    assert "add memory" in machine.cure


def test_memory_that_others_use_now_is_a_warning() -> None:
    found = only_bad(replace(GOOD, memory=CpuMemory(8 * GIB, 100 * MIB)))
    assert (found.check, found.status) == ("memory", Status.WARNING)
    assert "end other programs" in found.cure


def test_memory_is_enough_to_the_byte() -> None:
    enough = CpuMemory(252 * MIB, 252 * MIB)
    assert of(diagnose(replace(GOOD, memory=enough)), "memory").status is Status.OK
    less = CpuMemory(252 * MIB - 1, 252 * MIB - 1)
    assert of(diagnose(replace(GOOD, memory=less)), "memory").status is Status.PROBLEM


def test_a_model_that_cannot_be_read_is_a_problem_of_its_own() -> None:
    facts = replace(GOOD, need=ModelNeed("x.gguf", "x.gguf does not exist"))
    assert only_bad(facts).found == "x.gguf does not exist"
    assert diagnose(facts).exit_code == 3
    assert of(diagnose(replace(GOOD, need=None)), "memory").status is Status.OK


@pytest.mark.parametrize(("limit", "status"), [(300 * MIB, Status.PROBLEM), (4 * GIB, Status.WARNING)])
def test_an_address_space_limit_counts_mapped_files_too(limit: int, status: Status) -> None:
    found = only_bad(replace(GOOD, address_space_bytes=limit))
    assert (found.check, found.status) == ("address space", status)
    assert "ulimit -v unlimited" in found.cure


@pytest.mark.parametrize(
    ("disk", "status"),
    [
        (Disk("/d", 50 * GIB, "/d may not be written to by this user"), Status.PROBLEM),
        (Disk("/d", 100 * MIB), Status.PROBLEM),
        (Disk("/d", 1 * GIB), Status.WARNING),
        (Disk("/d", 2 * GIB), Status.OK),
    ],
)
def test_disks(disk: Disk, status: Status) -> None:
    diagnosis = diagnose(replace(GOOD, disk=disk))
    assert of(diagnosis, "disk").status is status
    assert diagnosis.exit_code == (7 if status is Status.PROBLEM else 0)


def test_a_large_model_needs_a_large_disk() -> None:
    need = ModelNeed("big.gguf", "", 4 * GIB, 14 * GIB, 4096, 8 * GIB, 29 * GIB)
    for free, status in ((7, Status.PROBLEM), (8, Status.WARNING), (28, Status.WARNING), (29, Status.OK)):
        found = of(diagnose(replace(GOOD, need=need, disk=Disk("/d", free * GIB))), "disk")
        assert found.status is status
        assert ("may take 29.0 GiB" in found.found) == (status is Status.WARNING)


def test_stores_that_cannot_be_read_or_are_damaged_are_problems() -> None:
    closed = StoreFacts("/s", error="cannot read /s/store.json: Permission denied")
    damaged = StoreFacts("/t", n_variants=1, damage=("layer 3 is missing, for small",))
    diagnosis = diagnose(replace(GOOD, stores=(closed, damaged)))
    assert [f.check for f in diagnosis.problems] == ["store /s", "store /t"]
    assert "Permission denied" in of(diagnosis, "store /s").found
    assert "ls -la /s" in of(diagnosis, "store /s").cure
    assert of(diagnosis, "store /t").cure == "lamella store repair /t"
    assert diagnosis.exit_code == 6


def test_the_first_problem_gives_the_exit_code() -> None:
    both = replace(GOOD, memory=CpuMemory(MIB, MIB), disk=Disk("/d", 0))
    assert diagnose(both).exit_code == 4
