"""A cluster of several machines on this one, until Ctrl-C.  As root:

python -m tests.testbed /tmp/bed laptop:rate=100M,delay=5,cores=0.5,memory=600MiB server:rate=1G
lamella cluster nodes --folder /tmp/bed/cluster
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from lamella.cli.output import say
from lamella.core.units import parse_bytes
from tests.testbed.bed import NodeSpec, TestBed
from tests.testbed.network import missing

UNITS = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def parse_node(text: str) -> NodeSpec:
    """``NAME:rate=100M,delay=5,cores=0.5,memory=600MiB``: bits a second, milliseconds one way, cores, bytes."""
    name, _, rest = text.partition(":")
    fields = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    unknown = fields.keys() - {"rate", "delay", "cores", "memory", "threads"}
    if unknown:
        raise SystemExit(f"unknown field {', '.join(sorted(unknown))} in '{text}'")
    rate = fields.get("rate")
    return NodeSpec(
        name,
        rate_bits=int(float(rate.rstrip("KMG")) * UNITS.get(rate[-1], 1)) if rate else None,
        delay_seconds=float(fields.get("delay", 0)) / 1e3,
        cores=float(fields["cores"]) if "cores" in fields else None,
        memory_bytes=parse_bytes(fields["memory"]) if "memory" in fields else None,
        n_threads=int(fields.get("threads", 1)),
    )


def main(path: str, *nodes: str) -> int:
    """Start the nodes and wait."""
    if why := missing():
        sys.stderr.write(f"{why}\n")
        return 1
    with TestBed(Path(path)) as bed:
        for text in nodes:
            node = bed.add(parse_node(text))
            say(f"node '{node.spec.name}' listens on {node.machine.address}; log: {node.log}")
        say(f"coordinator's folder: {bed.cluster.path}; Ctrl-C ends")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.exit(main(*sys.argv[1:]))
