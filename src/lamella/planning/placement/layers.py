"""A model's layers as the placement knows them: bytes and loss at each precision, from its shape and a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lamella.core.artifacts import Measurement
from lamella.core.errors import InvalidRequest
from lamella.core.model import LayerSpec, ModelSpec
from lamella.core.precision import SCHEMES, Scheme
from lamella.planning.cost import realise, stored_bytes
from lamella.planning.memory import kv_row_bytes
from lamella.planning.placement.problem import Layer, Option

_WHOLE = "fp16"
"""Not rounded, whatever the scheme."""
HIDDEN_STATE_BYTES = 4
"""Of one number of the hidden state: llama.cpp hands it from device to device in F32."""


def layers_of(
    spec: ModelSpec, measurement: Measurement, precisions: Sequence[str], kv_type: str = "F16"
) -> tuple[Layer, ...]:
    """Layers whose losses a measurement predicts.

    Args:
        measurement: of metric ``sensitivity`` (losses are KL divergence in nats a token) or ``weight-difference``
            (losses are ||W - Q(W)|| / ||W||, as in DILEMMA, and bytes those of the scheme that it was measured with).
        precisions: of the menu, or ggml types.

    Raises:
        InvalidRequest: a measurement of another metric, or one that predicts no loss of some layer at any precision.
        UnsupportedTensor: rows of the model cannot be of a named type.
    """
    scheme = scheme_of(measurement)
    types = {p: realise(spec, [p] * spec.n_layers, "block" if p == _WHOLE else scheme) for p in precisions}
    found = []
    for layer in spec.layers:
        options = {}
        for precision, tensors in types.items():
            loss = _loss(measurement, layer, precision, tensors)
            if loss is not None:
                options[precision] = Option(stored_bytes(layer.tensors, tensors), loss)
        if not options:
            raise InvalidRequest(
                f"the measurement predicts no loss of layer {layer.index} at any of {', '.join(precisions)}"
            )
        found.append(Layer(options, kv_row_bytes(spec, layer, kv_type), hidden_state_bytes(spec)))
    return tuple(found)


def scheme_of(measurement: Measurement) -> Scheme:
    """How weights are rounded whose loss was measured.

    Raises:
        InvalidRequest: as nothing that this version knows.
    """
    named = str(measurement.settings.get("scheme", "block"))
    for scheme in SCHEMES:
        if scheme == named:
            return scheme
    raise InvalidRequest(f"the measurement is of scheme '{named}'; known: {', '.join(SCHEMES)}")


def hidden_state_bytes(spec: ModelSpec) -> int:
    """Of one token, between two layers."""
    return HIDDEN_STATE_BYTES * int(spec.hyperparameters["embedding_length"])


def _loss(measurement: Measurement, layer: LayerSpec, precision: str, tensors: Mapping[str, str]) -> float | None:
    """Of a layer at a precision; None where the measurement does not say."""
    if all(tensors[t.name] == t.type_name for t in layer.matrices):
        return 0.0
    if measurement.metric == "weight-difference":
        scores = {score.layer: score.mean for score in measurement.per_precision.get(precision, ())}
        return scores.get(layer.index)
    if not measurement.tensors:
        raise InvalidRequest(
            f"a measurement of metric {measurement.metric} does not say what a layer loses at each precision; "
            "sensitivity and weight-difference do"
        )
    losses = {loss.tensor: loss.by_type for loss in measurement.tensors}
    changed = [t for t in layer.matrices if tensors[t.name] != t.type_name]
    parts = [losses.get(t.name, {}).get(tensors[t.name]) for t in changed]
    known = [part for part in parts if part is not None]
    return max(0.0, math.fsum(known)) if len(known) == len(parts) else None
