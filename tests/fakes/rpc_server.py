"""llama.cpp's RPC server on loopback, which stands in for a GPU: memory of its own, no host pointers, kept graphs.

with rpc_server() as (endpoint, process):
    ...
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from tests.fakes.ports import free_port


@contextlib.contextmanager
def rpc_server() -> Iterator[tuple[str, psutil.Process]]:
    """Its endpoint and its process, once it answers."""
    port = free_port()
    code = f"from lamella.llama import rpc; rpc.serve('127.0.0.1:{port}')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            _wait_for(port)
            yield f"127.0.0.1:{port}", psutil.Process(child.pid)
        finally:
            child.kill()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 240
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < end, "the RPC server does not come up"
            time.sleep(0.05)
        else:
            return
