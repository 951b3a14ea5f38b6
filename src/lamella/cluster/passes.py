"""What a pass over a node costs whatever it computes: RPC's messages, both ends of the tunnel, the processes between.

    seconds = await measure_pass(dialler, "laptop", width=896)

    python -P -m lamella.cluster.passes 127.0.0.1:50052 896      # in a process of its own: ggml may abort

The way of the hidden state is in it: round trip, and its bytes there and back.
"""

from __future__ import annotations

import sys

from lamella.cluster.apart import output_of, write_output
from lamella.cluster.dialling import Dialler
from lamella.cluster.forwarding import Forwarder

PASS_COMMAND = (sys.executable, "-P", "-m", "lamella.cluster.passes")
PASS_SECONDS = 60.0


async def measure_pass(dialler: Dialler, node: str, width: int) -> float:
    """Measure it over a session of its own, as an engine would compute; a second or two.

    Args:
        width: numbers of a token's hidden state.

    Raises:
        RemoteFailed: the node does not answer, or cannot compute.
    """
    async with Forwarder(dialler, node) as forwarder:
        await forwarder.ready(PASS_SECONDS)
        out = await output_of(
            [*PASS_COMMAND, forwarder.endpoint, str(width)],
            PASS_SECONDS,
            failed=f"no pass over node '{node}'",
            late=f"passes over node '{node}' took more than {PASS_SECONDS:g} s",
        )
    return float(out)


def pass_seconds(endpoint: str, width: int) -> float:
    """Over the only device that answers at an endpoint, in this process.

    Raises:
        LibraryError: llama.cpp was built without the RPC backend.
        EngineFailed: no server answers there, or it cannot compute.
    """
    from lamella.llama import rpc

    (device,) = rpc.connect(endpoint)
    return rpc.pass_seconds(device, width)


if __name__ == "__main__":
    sys.exit(write_output(lambda: repr(pass_seconds(sys.argv[1], int(sys.argv[2]))).encode()))
