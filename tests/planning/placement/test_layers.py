"""Layers from a model's shape and a measurement: bytes of the scheme that was measured, losses where they are known."""

from __future__ import annotations

import pytest

from lamella.core.artifacts import LayerScore, Measurement, TensorLoss
from lamella.core.errors import InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.planning.cost import realise, stored_bytes
from lamella.planning.placement.layers import layers_of
from lamella.planning.specs import builtin_spec
from tests.planning.losses import made_losses

SPEC = builtin_spec("opt-350m")


def _measured(**settings: str) -> Measurement:
    scores = {
        p: tuple(LayerScore(i, size * (i + 1)) for i in range(SPEC.n_layers))
        for p, size in (("int8", 0.001), ("int4", 0.1))
    }
    return Measurement("weight-difference", SPEC.identity, settings, (), scores["int4"], per_precision=scores)


@pytest.mark.parametrize("scheme", ["block", "truncate"])
def test_bytes_are_those_that_the_scheme_stores(scheme: str) -> None:
    layers = layers_of(SPEC, _measured(scheme=scheme), ("int8", "int4"))
    assert layers[2].options["int4"].loss == pytest.approx(0.3)
    types = realise(SPEC, ["int4"] * SPEC.n_layers, "truncate" if scheme == "truncate" else "block")
    assert layers[2].options["int4"].n_bytes == stored_bytes(SPEC.layers[2].tensors, types)


def test_what_stays_as_it_is_loses_nothing_whatever_was_measured() -> None:
    layers = layers_of(SPEC, _measured(scheme="truncate"), ("fp16", "int4"))
    assert all(layer.options["fp16"].loss == 0.0 for layer in layers)
    assert all(layer.options["fp16"].n_bytes > layer.options["int4"].n_bytes for layer in layers)


def test_a_precision_that_was_not_measured_is_left_out() -> None:
    layers = layers_of(SPEC, _measured(), ("int8", "int5"))
    assert all(set(layer.options) == {"int8"} for layer in layers)
    with pytest.raises(InvalidRequest, match="predicts no loss of layer 0 at any of int5"):
        layers_of(SPEC, _measured(), ("int5",))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="scheme 'folded'; known: block, channel, truncate"):
        layers_of(SPEC, _measured(scheme="folded"), ("int8",))


def _sensitivity(losses: tuple[TensorLoss, ...]) -> Measurement:
    return Measurement("sensitivity", SPEC.identity, {}, (), (), tensors=losses)


def test_a_layer_loses_what_its_matrices_lose_together() -> None:
    losses = made_losses(SPEC)
    by_name = {loss.tensor: loss.by_type for loss in losses}
    types = realise(SPEC, ["int4"] * SPEC.n_layers, "block")
    layers = layers_of(SPEC, _sensitivity(losses), ("fp16", "int4"))
    for layer, found in zip(SPEC.layers, layers, strict=True):
        expected = sum(by_name[t.name][types[t.name]] for t in layer.matrices)
        assert found.options["int4"].loss == pytest.approx(expected) != 0
        assert found.options["fp16"].loss == 0


def test_a_measured_gain_is_no_loss() -> None:
    """What a measurement finds below zero is noise, which other layers must not spend."""
    gains = tuple(TensorLoss(x.tensor, x.probe, 0.0, 0.0, dict.fromkeys(GGML_TYPES, -0.1)) for x in made_losses(SPEC))
    assert {layer.options["int4"].loss for layer in layers_of(SPEC, _sensitivity(gains), ("int4",))} == {0.0}


def test_a_layer_with_one_unmeasured_matrix_has_no_known_loss() -> None:
    last = SPEC.layers[3].matrices[-1].name
    losses = tuple(loss for loss in made_losses(SPEC) if loss.tensor != last)
    layers = layers_of(SPEC, _sensitivity(losses), ("fp16", "int4"))
    assert [i for i, layer in enumerate(layers) if "int4" not in layer.options] == [3]


def test_a_metric_that_says_no_losses_is_refused() -> None:
    measured = Measurement("jaccard", SPEC.identity, {}, (), tuple(LayerScore(i, 0.5) for i in range(SPEC.n_layers)))
    with pytest.raises(InvalidRequest, match="metric jaccard does not say what a layer loses"):
        layers_of(SPEC, measured, ("int8",))
