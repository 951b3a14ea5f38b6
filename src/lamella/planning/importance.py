"""Importances: scores to [0, 1], their order, and the prior used where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lamella.core.errors import InvalidRequest

LEAST_IMPORTANT_DEPTH = 5 / 6
AFTER_FACTOR = 1.5
PRIOR_FLOOR = 0.17


def normalise(scores: Sequence[float], n_layers: int) -> tuple[float, ...]:
    """Scores relative to the largest one, so the most important layer has 1; negative scores count as 0.

    The smallest score is *not* stretched to 0: the poster's Table 1 has a layer at 5/6 of the depth, where
    contributions are least, with 0.17, and a layer at 0 would get the fewest bits at every alpha.
    Equal scores (all zero, too) make all layers equally important: 1.

    Raises:
        InvalidRequest: not one finite score per layer.
    """
    if len(scores) != n_layers:
        raise InvalidRequest(f"{len(scores)} importances were given for a model of {n_layers} layers")
    broken = [i for i, s in enumerate(scores) if not math.isfinite(s)]
    if broken:
        raise InvalidRequest(f"the importance of layer {broken[0]} is {scores[broken[0]]}")
    largest = max(scores, default=0.0)
    if largest <= 0:
        return (1.0,) * n_layers
    return tuple(max(0.0, s) / largest for s in scores)


def prior(n_layers: int) -> tuple[float, ...]:
    """Importance to assume when nothing was measured.

    Layers matter least at about 5/6 of the depth, and more with the distance from it; a step towards the end counts
    1.5 times a step towards the start.  For 32 layers the first quarter of the order is the *set* that LSAQ
    (Table II) and LWQ both found for Llama-2-7B: layers 22 to 29.  Values run from 0.17 to 1, the range of the
    poster's Table 1.
    """
    centre = LEAST_IMPORTANT_DEPTH * n_layers
    distances = [max(centre - i, AFTER_FACTOR * (i - centre)) for i in range(n_layers)]
    farthest = max(distances, default=0.0) or 1.0
    return tuple(1 - (1 - PRIOR_FLOOR) * (1 - d / farthest) for d in distances)


def least_important_first(importance: Sequence[float]) -> tuple[int, ...]:
    """Layer indices, least important first; of equals the later layer goes first."""
    return tuple(sorted(range(len(importance)), key=lambda i: (importance[i], -i)))
