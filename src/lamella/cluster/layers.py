"""Which machine of a cluster has which layers of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COORDINATOR = "coordinator"
"""The coordinator's name among the machines; no node may have it."""


@dataclass(frozen=True, slots=True)
class LayersOf:
    """Layers ``first`` to ``end - 1`` on a machine; ``COORDINATOR`` is this one."""

    node: str
    first: int
    end: int


def nodes_of(layers: Iterable[LayersOf]) -> list[str]:
    """The nodes among the machines that have layers, each once, in the order of layers."""
    return list(dict.fromkeys(at.node for at in layers if at.node != COORDINATOR))
