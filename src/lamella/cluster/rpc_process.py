"""The process that computes on a node: llama.cpp's RPC server on loopback, and nothing else.

    python -P -m lamella.cluster.rpc_process PORT THREADS

It believes whatever its client says, and a wrong word ends it: so it is a process of its own, reached through the
agent's tunnel.  It ends when its standard input does, so that no agent leaves one behind.
"""

from __future__ import annotations

import os
import sys
import threading

from lamella.core.errors import LamellaError


def main(port: str, n_threads: str) -> int:
    """Serve until the process ends."""
    threading.Thread(target=_end_with_the_agent, daemon=True).start()
    from lamella.llama import rpc

    try:
        rpc.serve(f"127.0.0.1:{int(port)}", n_threads=int(n_threads))
    except LamellaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return LamellaError.exit_code  # it returns where it cannot listen


def _end_with_the_agent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort shall end at once, and not start a debugger
    sys.exit(main(*sys.argv[1:]))
