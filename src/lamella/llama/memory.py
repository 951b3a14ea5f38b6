"""What a context will allocate, from llama.cpp itself: a dry run that reads the model's header and allocates nothing.

llama.cpp can load a model without weights and plan every buffer of a context (``no_alloc``).  The sizes are only in its
log, so they are read from there; every architecture and every device is covered, because llama.cpp does the planning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import EngineFailed
from lamella.core.units import MIB
from lamella.llama import log
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model

_LAYER_DEVICE = re.compile(r"layer +\d+: dev = (\S+)")
# KV cache and recurrent state alike, also where nothing is allocated
_CACHE = re.compile(r": size = +([0-9.]+) MiB \(")
_COMPUTE = re.compile(r": +(\S+) compute buffer size = +([0-9.]+) MiB")
_RESERVING = "sched_reserve: reserving"
_OUTPUT = re.compile(r": +(\S+) +output buffer size = +([0-9.]+) MiB")


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """What a context allocates, to llama.cpp's 0.01 MiB.

    Attributes:
        kv_bytes: KV cache, or the recurrent state of models that have one.
        compute_bytes: intermediate results of a batch.
        output_bytes: logits that llama.cpp hands out.
        by_device: the sum of these on each device, by ggml's buffer name (``CPU``, ``CUDA0``, ``CUDA_Host``).
    """

    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    by_device: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        return self.kv_bytes + self.compute_bytes + self.output_bytes


def context_memory(
    paths: Sequence[Path], options: ContextOptions | None = None, *, n_gpu_layers: int = 0
) -> ContextMemory:
    """Dry run of ``Context(Model.load(paths), options)``.

    Args:
        paths: the model file, or all parts of a split one in order.

    Raises:
        EngineFailed: llama.cpp refuses the model or the context, or does not say the sizes.
    """
    with log.listening() as lines:
        model = Model.load(paths, n_gpu_layers=n_gpu_layers, without_weights=True)
        with model, Context(model, options or ContextOptions()):
            pass
    return parse_log(lines)


def parse_log(lines: Iterable[str]) -> ContextMemory:
    """Read the sizes from what llama.cpp logged while a context was made, for real or dry.

    Raises:
        EngineFailed: the lines about cache, compute buffers or outputs are missing.
    """
    cache: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    output: Counter[str] = Counter()
    layer_devices: list[str] = []
    n_caches = 0
    for line in lines:
        if found := _LAYER_DEVICE.search(line):
            layer_devices.append(found.group(1))
        elif found := _CACHE.search(line):
            cache.update(_spread(_bytes(found.group(1)), layer_devices))
            layer_devices, n_caches = [], n_caches + 1
        elif _RESERVING in line:
            compute.clear()  # buffers are planned anew when flash attention or parallelism turn out impossible
        elif found := _COMPUTE.search(line):
            compute[found.group(1)] += _bytes(found.group(2))
        elif found := _OUTPUT.search(line):
            output[found.group(1)] = _bytes(found.group(2))
    if not (n_caches and compute and output):
        raise EngineFailed("llama.cpp did not log the sizes of cache, compute buffers and outputs of the context")
    return ContextMemory(cache.total(), compute.total(), output.total(), dict(cache + compute + output))


def _spread(n_bytes: int, layer_devices: Sequence[str]) -> dict[str, int]:
    """Split a cache over the devices of its layers, which llama.cpp names one by one."""
    counts = Counter(layer_devices or ["CPU"])
    shares = {device: n_bytes * count // counts.total() for device, count in counts.items()}
    shares[next(iter(shares))] += n_bytes - sum(shares.values())
    return shares


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * MIB)
