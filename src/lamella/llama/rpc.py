"""Devices of other processes and machines: llama.cpp's RPC backend.

    rpc.serve("127.0.0.1:50052")                   # in one process: blocks
    names = rpc.connect("127.0.0.1:50052")         # in another: ("RPC0",)

The protocol has no authentication, and a peer that goes away aborts the process that uses it: only on loopback, and
only in processes that may die.
"""

from __future__ import annotations

import ctypes as ct

from lamella.core.errors import EngineFailed
from lamella.llama import devices, library
from lamella.llama.context import usable_cores


def connect(endpoint: str) -> tuple[str, ...]:
    """Make a server's devices known to ggml, until the process ends; returns the names that they have here.

    Raises:
        LibraryError: llama.cpp was built without the RPC backend.
        EngineFailed: no server answers there.
    """
    before = {d.name for d in devices.list_devices()}
    registry = library.load_rpc().ggml_backend_rpc_add_server(endpoint.encode())
    if not registry:
        raise EngineFailed(f"no RPC server answers at {endpoint}")
    library.load().ggml.ggml_backend_register(registry)
    return tuple(d.name for d in devices.list_devices() if d.name not in before)


def serve(endpoint: str, n_threads: int = 1) -> None:
    """Compute on this machine's CPU for whoever connects, one after the other; returns only where it cannot listen.

    Args:
        endpoint: HOST:PORT, an IPv4 address.
        n_threads: to compute with; 0 for the cores that this process may use.

    Raises:
        LibraryError: llama.cpp was built without the RPC backend.
    """
    handle = library.load_rpc()
    cpu = library.load().ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    served = (ct.c_void_p * 1)(cpu)
    handle.ggml_backend_rpc_start_server(endpoint.encode(), None, n_threads or usable_cores(), 1, served)
