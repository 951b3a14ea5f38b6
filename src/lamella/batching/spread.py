"""A model's layers over several devices of other machines, reached by RPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.batching.settings import LayersAt
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import rpc
from lamella.llama.model import LayerRange


@dataclass(frozen=True, slots=True)
class Spread:
    """Which device has each layer.

    Attributes:
        ranges: from the first layer to the last.
    """

    ranges: tuple[LayerRange, ...]

    @classmethod
    def connect(cls, layers: Sequence[LayersAt]) -> Spread | None:
        """Connect to the servers that are named; None where all layers are this process's.

        Raises:
            InvalidRequest: the ranges have gaps, or lie over each other.
            EngineFailed: a server does not answer, or has no device.
        """
        check_ranges(layers)
        if all(not at.endpoint for at in layers):
            return None
        known: dict[str, str] = {}
        for at in layers:
            if at.endpoint and at.endpoint not in known:
                known[at.endpoint] = _device(at.endpoint)
        return cls(tuple(LayerRange(known.get(at.endpoint), at.first, at.end) for at in layers))

    def check_covers(self, n_layers: int) -> None:
        """Refuse a model with more or fewer layers.

        Raises:
            InvalidRequest: it has.
        """
        if self.ranges[-1].end != n_layers:
            raise InvalidRequest(f"the model has {n_layers} layers, and {self.ranges[-1].end} have a place")

    def device_of(self, layer: int | None) -> str | None:
        """The device of a layer; None for the CPU, which has what stands outside of layers too."""
        if layer is None:
            return None
        return next((r.device for r in self.ranges if r.first <= layer < r.end), None)


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
