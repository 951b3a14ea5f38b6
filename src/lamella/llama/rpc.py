"""Devices of other processes and machines: llama.cpp's RPC backend.

    rpc.serve("127.0.0.1:50052")                   # in one process: blocks
    names = rpc.connect("127.0.0.1:50052")         # in another: ("RPC0",)

The protocol has no authentication and has had remote code execution, and a peer that goes away aborts the process that
uses it: only on loopback, and only in processes that may die.
"""

from __future__ import annotations

import ctypes as ct
import ipaddress
import socket

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import devices, library
from lamella.llama.context import usable_cores

ANSWER_SECONDS = 5.0


def connect(endpoint: str) -> tuple[str, ...]:
    """Make a server's devices known to ggml, until the process ends; returns the names that they have here.

    Raises:
        InvalidRequest: it is no loopback address with a port.
        LibraryError: llama.cpp was built without the RPC backend.
        EngineFailed: no server answers there.
    """
    handle = library.load_rpc()
    _check_answers(*_loopback(endpoint))
    before = {d.name for d in devices.list_devices()}
    registry = handle.ggml_backend_rpc_add_server(endpoint.encode())
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
        InvalidRequest: it is no loopback address with a port.
        LibraryError: llama.cpp was built without the RPC backend.
    """
    _loopback(endpoint)
    handle = library.load_rpc()
    cpu = library.load().ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    served = (ct.c_void_p * 1)(cpu)
    handle.ggml_backend_rpc_start_server(endpoint.encode(), None, n_threads or usable_cores(), 1, served)


def _loopback(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    try:
        if ipaddress.IPv4Address(host).is_loopback and 0 < int(port) < 1 << 16:
            return host, int(port)
    except ValueError:
        pass
    raise InvalidRequest(
        f"'{endpoint}' is no loopback address such as 127.0.0.1:50052; llama.cpp's RPC has no authentication, so other "
        "machines need an encrypted tunnel that ends here"
    )


def _check_answers(host: str, port: int) -> None:
    """ggml aborts the process where nobody listens."""
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineFailed(f"no RPC server answers at {host}:{port}: {error.strerror or error}") from error
