"""Devices of other processes and machines: llama.cpp's RPC backend.

    rpc.serve("127.0.0.1:50052")                   # in one process: blocks
    names = rpc.connect("127.0.0.1:50052")         # in another: ("RPC0",)

The protocol has no authentication and has had remote code execution, and a peer that goes away aborts the process that
uses it: only on loopback, and only in processes that may die.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import ipaddress
import socket
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from lamella.core.cores import usable_cores
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import devices, library
from lamella.llama.scratch import Scratch

ANSWER_SECONDS = 5.0
SMALL_INPUTS = (128, 2, 2, 1)
"""32-bit words of what else llama.cpp sends with a step of one token: mask of 256 cells, rows of keys and of values,
position."""
PASSES, WARM_UP_PASSES = 40, 8


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


def pass_seconds(device: str, width: int) -> float:
    """What a pass costs over a device of ``connect`` whatever it computes; median of some, in seconds.

    A step's messages are sent as llama.cpp sends them for one token: each input alone, then the graph, here of one row,
    and at last the hidden state is asked for.

    Args:
        width: numbers of the hidden state.

    Raises:
        EngineFailed: the device gives no memory, or cannot compute.
    """
    with Scratch(devices.address(device)) as scratch:
        row, *inputs = (scratch.tensor("F32", n, 1) for n in (width, width, *SMALL_INPUTS))
        graph = scratch.graph([scratch.base.ggml_mul_mat(scratch.context, row, inputs[0])])
        scratch.allocate(f"a row of {width} numbers")
        state = np.zeros(max(width, *SMALL_INPUTS), np.float32)
        scratch.write(row, state)
        seconds = [_pass(scratch, graph, inputs, state) for _ in range(WARM_UP_PASSES + PASSES)]
    return statistics.median(seconds[WARM_UP_PASSES:])


def _pass(scratch: Scratch, graph: int, inputs: list[int], state: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    for tensor in inputs:
        scratch.write(tensor, state)
    scratch.compute(graph)
    scratch.read(inputs[0], state)
    return time.perf_counter() - start


def _loopback(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(ValueError):
        if ipaddress.IPv4Address(host).is_loopback and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16:
            return host, int(port)
    raise InvalidRequest(
        f"'{endpoint}' is no loopback address such as 127.0.0.1:50052 (IPv4, with a port); llama.cpp's RPC has no "
        "authentication, so other machines need an encrypted tunnel that ends here"
    )


def _check_answers(host: str, port: int) -> None:
    """ggml aborts the process where nobody listens."""
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineFailed(f"no RPC server answers at {host}:{port}: {error.strerror or error}") from error
