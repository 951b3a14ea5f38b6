"""Measured speeds of this machine, kept between runs so that an engine starts at once."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from lamella.core.artifacts import Variant
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file
from lamella.core.precision import GGML_TYPES
from lamella.llama import kernels, library
from lamella.llama.kernels import KernelTimes
from lamella.run.layouts import MAPPED, Layout, LayoutPolicy, choices, choose

FORMAT_VERSION = 1
_ATTENTION = "attention"
"""Stands beside the types."""


class KernelTable:
    """Kernel times by ggml type, measured on first use.

    The file is a cache: one that is damaged, of another version or of another machine is measured anew and replaced;
    one that cannot be written is done without.
    """

    def __init__(self, file: Path | None, n_threads: int, least_seconds: float = 0.0) -> None:
        """Use ``file`` as the cache, or none.

        Args:
            n_threads: what the engine will compute with.
            least_seconds: as in ``kernels.measure``, for what is not in the file.
        """
        self._file, self._n_threads, self._least_seconds = file, n_threads, least_seconds
        self._times: dict[str, KernelTimes] | None = None

    def times(self, type_names: Iterable[str]) -> dict[str, KernelTimes]:
        """Times of the given types; half a second for each that was never measured."""
        wanted = [n for n in sorted(set(type_names)) if GGML_TYPES[n].writable]
        return self._known(
            {n: partial(kernels.measure, GGML_TYPES[n], self._n_threads, self._least_seconds) for n in wanted}
        )

    def attention(self) -> KernelTimes:
        """``kernels.measure_attention``; a tenth of a second where it was never measured."""
        measured = partial(kernels.measure_attention, self._n_threads, self._least_seconds)
        return self._known({_ATTENTION: measured})[_ATTENTION]

    def _known(self, measured: Mapping[str, Callable[[], KernelTimes]]) -> dict[str, KernelTimes]:
        """By name, those that are known already or are measured now."""
        if self._times is None:
            self._times = self._read().get(self._machine, {})
        new = [name for name in measured if name not in self._times]
        for name in new:
            self._times[name] = measured[name]()
        if new:
            self._write()
        return {name: self._times[name] for name in measured}

    @property
    def _machine(self) -> str:
        how = f"{self._n_threads} threads" + (f" for {self._least_seconds:g} s" if self._least_seconds else "")
        return f"{FORMAT_VERSION}|{processor_name()}|{how}|{library.installed_version()}"

    def _read(self) -> dict[str, dict[str, KernelTimes]]:
        """By machine and thread count, then by type."""
        if self._file is None:
            return {}
        try:
            return msgspec.json.decode(read_file(self._file), type=dict[str, dict[str, KernelTimes]])
        except (OSError, *UNREADABLE):
            return {}

    def _write(self) -> None:
        if self._file is None or self._times is None:
            return
        document = msgspec.json.encode({**self._read(), self._machine: self._times}, order="sorted")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            try:
                temporary.write_bytes(document)
                temporary.replace(self._file)
            finally:
                temporary.unlink(missing_ok=True)


def layout_choices(
    policy: LayoutPolicy, kernels: KernelTable, variants: Iterable[Variant]
) -> tuple[Mapping[str, Layout], ...]:
    """How each ggml type of some variants may be read (``layouts.choices``); ``mapped`` measures nothing."""
    if policy == "mapped":
        return (MAPPED,)
    types = {t for v in variants for n, t in v.plan.tensors.items() if n.startswith("blk.")}
    return choices(policy, choose(policy, kernels.times(types - {"F32"})))


def processor_name() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
