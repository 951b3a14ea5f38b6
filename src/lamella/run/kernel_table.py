"""Measured speeds of this machine, kept between runs so that an engine starts at once."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lamella.core.artifacts import Variant
from lamella.core.foreign import UNREADABLE
from lamella.core.precision import GGML_TYPES
from lamella.llama import kernels, library
from lamella.llama.kernels import KernelTimes
from lamella.run.layouts import Layout, LayoutPolicy, choose

FORMAT_VERSION = 1


class KernelTable:
    """Kernel times by ggml type, measured on first use.

    The file is a cache: one that is damaged, of another version or of another machine is measured anew and replaced;
    one that cannot be written is done without.
    """

    def __init__(self, file: Path | None, n_threads: int) -> None:
        """Use ``file`` as the cache, or none.

        Args:
            n_threads: what the engine will compute with.
        """
        self._file, self._n_threads = file, n_threads
        self._times: dict[str, KernelTimes] | None = None

    def times(self, type_names: Iterable[str]) -> dict[str, KernelTimes]:
        """Times of the given types; half a second for each that was never measured."""
        if self._times is None:
            self._times = self._read().get(self._machine, {})
        wanted = [n for n in sorted(set(type_names)) if GGML_TYPES[n].writable]
        new = [n for n in wanted if n not in self._times]
        for name in new:
            self._times[name] = kernels.measure(GGML_TYPES[name], self._n_threads)
        if new:
            self._write()
        return {n: self._times[n] for n in wanted}

    @property
    def _machine(self) -> str:
        return f"{FORMAT_VERSION}|{processor_name()}|{self._n_threads} threads|{library.installed_version()}"

    def _read(self) -> dict[str, dict[str, KernelTimes]]:
        """By machine and thread count, then by type."""
        if self._file is None:
            return {}
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, dict[str, KernelTimes]])
        except (OSError, *UNREADABLE):
            return {}

    def _write(self) -> None:
        if self._file is None or self._times is None:
            return
        document = msgspec.json.encode({**self._read(), self._machine: self._times}, order="sorted")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(document)
            temporary.replace(self._file)


def layouts_of(policy: LayoutPolicy, kernels: KernelTable, variants: Iterable[Variant]) -> dict[str, Layout]:
    """How each ggml type of some variants is read; nothing is measured where the policy is ``mapped``."""
    if policy == "mapped":
        return {}
    types = {t for v in variants for n, t in v.plan.tensors.items() if n.startswith("blk.")}
    return choose(policy, kernels.times(types - {"F32"}))


def processor_name() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
