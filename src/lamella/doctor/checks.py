"""What the facts of a machine mean, and the cure.  Everything here is pure."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.core.errors import (
    DoesNotFit,
    LibraryError,
    ModelError,
    StorageFailed,
    StoreError,
)
from lamella.core.units import GIB, MIB, format_bytes
from lamella.doctor.facts import Facts, StoreFacts
from lamella.doctor.findings import Diagnosis, Finding, Status
from lamella.llama.library import rebuild_command
from lamella.resources.machine import MACHINE

BACKENDS = {"NVIDIA": ("CUDA", " -DGGML_CUDA=ON"), "AMD": ("ROCm", " -DGGML_HIP=ON")}
"""Graphics processor -> llama.cpp's backend for it, and the option that builds it."""
FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
"""Linux's name of an instruction set -> llama.cpp's (``llama_print_system_info``), those that its kernels gain by.

Not AMX's: weights are mapped or in ggml's ``REPACK`` layout, and have no third one for it."""
LEAST_DISK_BYTES, EASY_DISK_BYTES = 256 * MIB, 2 * GIB


def diagnose(facts: Facts) -> Diagnosis:
    """All findings, problems or not."""
    return Diagnosis(tuple(_all(facts)))


def _all(facts: Facts) -> Iterator[Finding]:
    yield Finding("system", Status.OK, facts.system)
    yield _compiler(facts)
    yield _library(facts)
    if not facts.library.error:
        yield _processor(facts)
        yield _devices(facts)
        yield _rpc(facts)
    yield _memory(facts)
    yield from _address_space(facts)
    yield _disk(facts)
    yield from map(_store, facts.stores)


def _problem(check: str, found: str, cure: str, error: type[Exception]) -> Finding:
    return Finding(check, Status.PROBLEM, found, cure, int(getattr(error, "exit_code", 1)))


def _compiler(facts: Facts) -> Finding:
    if facts.compiler.path:
        return Finding("compiler", Status.OK, f"{facts.compiler.path}: {facts.compiler.version}")
    cure = "Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
    if facts.library.error:
        return _problem("compiler", "no C++ compiler, which building llama.cpp takes", cure, LibraryError)
    return Finding("compiler", Status.WARNING, "no C++ compiler; llama.cpp works, but cannot be built anew", cure)


def _library(facts: Facts) -> Finding:
    library = facts.library
    if not library.error:
        return Finding("llama.cpp", Status.OK, f"llama-cpp-python {library.version}; it loads, and its layout is known")
    if library.is_too_slow:
        return _problem("llama.cpp", library.error, "look again when machine and disk are less busy", LibraryError)
    return _problem("llama.cpp", library.error, f"build it for this machine: {rebuild_command()}", LibraryError)


def _processor(facts: Facts) -> Finding:
    processor = facts.processor
    cores = f"{processor.n_cores} cores" + (
        f", of which this process may use {processor.n_usable}" if processor.n_usable < processor.n_cores else ""
    )
    found = f"{processor.name}, {cores}"
    unused = [name for flag, name in FEATURES.items() if flag in processor.flags and name not in facts.library.features]
    if unused:
        found = f"{found}; llama.cpp was built without {', '.join(unused)}, which it has"
        return Finding("processor", Status.WARNING, found, f"build llama.cpp for this machine: {rebuild_command()}")
    used = sorted(facts.library.features & set(FEATURES.values()))
    return Finding("processor", Status.OK, f"{found}; llama.cpp uses {', '.join(used) or 'no special instructions'}")


def _devices(facts: Facts) -> Finding:
    found = "; ".join(
        f"{d.name} ({d.description}), {format_bytes(d.free_bytes)} free of {format_bytes(d.total_bytes)}"
        for d in facts.devices
        if d.holds_models
    )
    for maker in facts.graphics:
        backend, option = BACKENDS[maker]
        if backend not in facts.library.backends:
            found = f"{found}; the {maker} GPU of this machine is not used: llama.cpp was built without {backend}"
            return Finding("devices", Status.WARNING, found, f"build it with {backend}: {rebuild_command(option)}")
    return Finding("devices", Status.OK, found)


def _rpc(facts: Facts) -> Finding:
    if facts.library.has_rpc:
        return Finding("RPC", Status.OK, "llama.cpp can use devices of other processes and machines")
    found = "llama.cpp was built without RPC; one machine needs none, several do"
    return Finding("RPC", Status.WARNING, found, f"build it with RPC: {rebuild_command()}")


def _memory(facts: Facts) -> Finding:
    memory, need = facts.memory, facts.need
    found = f"{format_bytes(memory.available_bytes)} of {format_bytes(memory.total_bytes)} can be used"
    if memory.limited_by != MACHINE:
        found += f", as the control group {memory.limited_by} allows"
    if need is None:
        return Finding("memory", Status.OK, found)
    if need.is_too_slow:
        cure = "look again when machine and disk are less busy, or with a copy of the file on a disk of this machine"
        return _problem("memory", need.error, cure, ModelError)
    if need.error:
        return _problem("memory", need.error, "name a model file: lamella doctor --model FILE.gguf", ModelError)
    wanted = f"the smallest plan of {need.model} takes {format_bytes(need.smallest_bytes)}"
    wanted += f", a context of {need.n_ctx} tokens included"
    if need.smallest_bytes > memory.total_bytes:
        return _problem("memory", f"{found}; {wanted}", _more_memory(facts), DoesNotFit)
    if need.smallest_bytes > memory.available_bytes:
        return Finding("memory", Status.WARNING, f"{found}; {wanted}", "end other programs, or wait until they have")
    return Finding("memory", Status.OK, f"{found}; {wanted}")


def _more_memory(facts: Facts) -> str:
    smaller = "or take a smaller model or a shorter --context"
    if facts.memory.limited_by == MACHINE:
        return f"add memory, {smaller}"
    group = facts.memory.limited_by
    return f"raise the limit of {group} (docker run --memory, MemoryMax= of a systemd unit), {smaller}"


def _address_space(facts: Facts) -> Iterator[Finding]:
    limit, need = facts.address_space_bytes, facts.need
    if limit is None:
        return
    found = f"this process may address {format_bytes(limit)} (ulimit -v), mapped model files included"
    cure = "ulimit -v unlimited, in the shell that starts lamella"
    if need is not None and limit < need.smallest_bytes + need.file_bytes:
        yield _problem("address space", found, cure, DoesNotFit)
    else:
        yield Finding("address space", Status.WARNING, found, cure)


def _disk(facts: Facts) -> Finding:
    disk, need = facts.disk, facts.need
    if disk.error:
        cure = "name another folder in the variable LAMELLA_CACHE, or make this one writable"
        return _problem("disk", f"nothing can be written to {disk.folder}: {disk.error}", cure, StorageFailed)
    found = f"{format_bytes(disk.free_bytes)} are free in {disk.folder}"
    least = max(LEAST_DISK_BYTES, need.largest_bytes if need else 0)
    easy = max(EASY_DISK_BYTES, need.store_bytes if need else 0)
    if disk.free_bytes < least:
        cure = "free some space, or name a folder on another disk in the variable LAMELLA_CACHE"
        return _problem("disk", f"{found}; a variant of a model takes {format_bytes(least)}", cure, StorageFailed)
    if disk.free_bytes < easy:
        cure = "free some space, or keep stores small: lamella store quota STORE SIZE"
        return Finding("disk", Status.WARNING, f"{found}; a model's variants may take {format_bytes(easy)}", cure)
    return Finding("disk", Status.OK, found)


def _store(store: StoreFacts) -> Finding:
    check = f"store {store.path}"
    if store.error:
        cure = f"look at the folder's owner and rights: ls -la {store.path}; a store is made by lamella build or ladder"
        return _problem(check, store.error, cure, StoreError)
    if store.damage:
        return _problem(check, "; ".join(store.damage), f"lamella store repair {store.path}", StoreError)
    variants = "1 variant" if store.n_variants == 1 else f"{store.n_variants} variants"
    return Finding(check, Status.OK, f"{variants}; every shard is there in its full size (lamella store verify hashes)")
