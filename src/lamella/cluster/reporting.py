"""What a node says of itself: devices, memory within its control group's limits, measured speeds.

python -P -m lamella.cluster.reporting kernels.json 2 Q8_0 Q4_0      # in a process of its own: ggml may abort
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.cluster.apart import output_of, write_output
from lamella.cluster.messages import DeviceReport, NodeReport, Speed
from lamella.core.errors import InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.version import __version__

REPORT_COMMAND = (sys.executable, "-P", "-m", "lamella.cluster.reporting")
REPORT_SECONDS = 600.0
SUSTAINED_SECONDS = 0.04
"""That single tokens are computed for at a time: what a share of a core gives for long, not what it gives at once."""


def report(kernel_file: Path, n_threads: int, types: Sequence[str]) -> NodeReport:
    """Look at this machine; half a second for each type that was never measured here.

    Args:
        n_threads: to measure with; 0 for the cores that this process may use.

    Raises:
        InvalidRequest: an unknown type.
    """
    from lamella.core.cores import usable_cores
    from lamella.llama import library
    from lamella.resources.devices import detect
    from lamella.resources.machine import cpu_memory
    from lamella.run.kernel_table import KernelTable, processor_name

    unknown = [name for name in types if name not in GGML_TYPES]
    if unknown:
        raise InvalidRequest(f"unknown ggml type '{unknown[0]}'")
    memory, n_cores = cpu_memory(), usable_cores()
    table = KernelTable(kernel_file, n_threads or n_cores, SUSTAINED_SECONDS)
    times, attention = table.times(types), table.attention()
    return NodeReport(
        version=__version__,
        llama_cpp=library.installed_version(),
        processor=processor_name(),
        n_cores=n_cores,
        memory_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        limited_by=memory.limited_by,
        devices=[
            DeviceReport(d.name, d.kind, d.description, d.free_bytes, d.total_bytes, d.limited_by) for d in detect()
        ],
        speeds={name: Speed(t.mapped_token, t.mapped_prompt) for name, t in times.items()},  # RPC repacks nothing
        attention=Speed(attention.mapped_token, attention.mapped_prompt),
    )


async def report_apart(kernel_file: Path, n_threads: int, types: Sequence[str]) -> NodeReport:
    """``report``, by a process that may die of it.

    Raises:
        RemoteFailed: it died, or took too long; in its own words where it found some.
    """
    out = await output_of(
        [*REPORT_COMMAND, str(kernel_file), str(n_threads), *types],
        REPORT_SECONDS,
        failed="the node cannot describe itself",
        late=f"the node did not describe itself within {REPORT_SECONDS:g} s",
    )
    return msgspec.json.decode(out, type=NodeReport)


if __name__ == "__main__":
    sys.exit(write_output(lambda: msgspec.json.encode(report(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))))
