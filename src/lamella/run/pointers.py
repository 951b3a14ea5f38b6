"""Where the weights of a loaded model point."""

from __future__ import annotations

from collections.abc import Mapping

from lamella.core.model import TensorSpec
from lamella.llama.model import Model
from lamella.llama.weights import WeightState, locate_weights, read_state, release_pages, write_state


class WeightPointers:
    """Finds a model's weights and points them elsewhere, between two decodes.

    Attributes:
        names: of all weights that take part in computing a token.
        repackable: those that only matrix products read.
        placeable: those that a device can have.
        has_views: a graph of the model keeps addresses of some weight's data (RWKV, for one).
    """

    def __init__(self, model: Model, tensors: Mapping[str, TensorSpec]) -> None:
        """Find them, and let go of the pages that llama.cpp mapped to load them: they are about to point elsewhere.

        Args:
            tensors: the model's tensors by name.
        """
        self._weights = locate_weights(model)
        self.names = frozenset(self._weights)
        self.repackable = frozenset(n for n, w in self._weights.items() if w.is_only_multiplied)
        self.placeable = frozenset(n for n, w in self._weights.items() if w.may_leave_host)
        self.has_views = any(w.is_viewed for w in self._weights.values())
        self._now = {n: read_state(w.addresses[0]) for n, w in self._weights.items()}
        self._pointed: Mapping[str, WeightState] = self._now
        release_pages((state, tensors[name].n_bytes) for name, state in self._now.items() if name in tensors)

    def is_at(self, states: Mapping[str, WeightState]) -> bool:
        """Whether ``point_at`` was last given this very mapping."""
        return states is self._pointed

    def point_at(self, states: Mapping[str, WeightState]) -> int:
        """Point every weight that is elsewhere at ``states``; returns how many."""
        if states is self._pointed:
            return 0
        moved = 0
        self._pointed = {}  # an interrupt in the middle leaves no state that passes for complete
        for name, weight in self._weights.items():
            state = states[name]
            if state != self._now.get(name):
                self._now.pop(name, None)
                for address in weight.addresses:
                    write_state(address, state)
                self._now[name] = state
                moved += 1
        self._pointed = states
        return moved
