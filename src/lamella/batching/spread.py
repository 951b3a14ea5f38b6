"""A model's layers over several devices of other machines, reached by RPC."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.batching.settings import LayersAt
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import rpc
from lamella.llama.model import LayerRange


def connect(layers: Sequence[LayersAt]) -> tuple[LayerRange, ...]:
    """Connect to the servers that are named: which device has each layer, from the first to the last.

    Returns:
        Nothing where all layers are this process's.

    Raises:
        InvalidRequest: the ranges have gaps, or lie over each other.
        EngineFailed: a server does not answer, or has no device.
    """
    check_ranges(layers)
    if all(not at.endpoint for at in layers):
        return ()
    known: dict[str, str] = {}
    for at in layers:
        if at.endpoint and at.endpoint not in known:
            known[at.endpoint] = _device(at.endpoint)
    return tuple(LayerRange(known.get(at.endpoint), at.first, at.end) for at in layers)


def check_ranges(layers: Sequence[LayersAt]) -> None:
    """Refuse ranges that leave a layer out, or have one twice.

    Raises:
        InvalidRequest: they do.
    """
    expected = 0
    for at in layers:
        if at.first != expected or at.end <= at.first:
            raise InvalidRequest(f"layers {at.first} to {at.end - 1} come where layer {expected} is expected")
        expected = at.end


def _device(endpoint: str) -> str:
    names = rpc.connect(endpoint)
    if not names:
        raise EngineFailed(f"the RPC server at {endpoint} has no device")
    return names[0]
