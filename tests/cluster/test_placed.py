"""Placements put to work: what is read of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamella import api
from lamella.api.placed import shards_of
from lamella.cluster.layers import COORDINATOR, LayersOf
from lamella.core.errors import InvalidRequest
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model


def placement(folder: Path, *segments: tuple[str, int, list[str]], **changed: Any) -> Path:
    """As ``lamella cluster plan --json`` prints it, with more than is read here."""
    document = {
        "format": "lamella.placement",
        "format_version": 1,
        "coordinator": "laptop",
        "segments": [{"node": node, "first": first, "precisions": names} for node, first, names in segments],
        "seconds": 1.5,
        **changed,
    }
    path = folder / "placement.json"
    path.write_text(json.dumps(document))
    return path


def test_layers_are_read_as_people_write_them() -> None:
    assert api.parse_layers("laptop=0-11, server=12-12,coordinator=13") == [
        LayersOf("laptop", 0, 12),
        LayersOf("server", 12, 13),
        LayersOf(COORDINATOR, 13, 14),
    ]
    for wrong in ("", "laptop", "laptop=", "=0-3", "laptop=a-b", "laptop=0-3,", "laptop=-1"):
        with pytest.raises(InvalidRequest, match="NODE=FIRST-LAST"):
            api.parse_layers(wrong)


def test_layers_of_the_planned_coordinator_are_this_machines(tmp_path: Path) -> None:
    path = placement(tmp_path, ("server", 0, ["int8", "int4"]), ("laptop", 2, ["int8"]))
    assert api.read_placed_layers(path) == [LayersOf("server", 0, 2), LayersOf(COORDINATOR, 2, 3)]


def test_a_placement_becomes_a_variant_with_its_precisions(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_embd=256, n_ff=512)
    path = placement(tmp_path, ("server", 0, ["int8", "int4"]), ("laptop", 2, ["int8"]))
    report = api.build(model, tmp_path / "store", api.placed_plan(model, path), "placed")
    types = report.variant.plan.tensors
    assert [types[f"blk.{i}.ffn_up.weight"] for i in range(3)] == ["Q8_0", "Q4_K", "Q8_0"]
    assert [layer.precision for layer in report.variant.plan.layers] == ["int8", "int4", "int8"]


def test_a_placement_of_another_model_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_embd=256, n_ff=512)
    with pytest.raises(InvalidRequest, match=r"places 2 layers, .* has 3"):
        api.placed_plan(model, placement(tmp_path, ("server", 0, ["int8", "int4"])))
    with pytest.raises(InvalidRequest, match="is no placement"):
        api.placed_plan(model, placement(tmp_path, format="lamella.plan"))


def test_a_node_gets_the_shards_of_its_layers_alone(store: Store) -> None:
    layers = [LayersOf("one", 0, 1), LayersOf("one", 2, 3)]
    found = shards_of(store, None, layers)
    assert {shard.label for shard in found} == {"layer 0", "layer 2"}
    assert len(found) == 6  # two layers at three precisions
    assert len(shards_of(store, ["small"], layers)) == 2
