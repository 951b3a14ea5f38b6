"""Clusters and placements as JSON: what is read, what is refused, and what can be written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lamella.core.errors import ArtifactError, InvalidRequest
from lamella.planning.placement import Cluster, Layer, Link, Node, Option, PlacementProblem, Request, Speed, place
from lamella.planning.placement.document import FORMAT_VERSION, placement_document, read_cluster

WRITTEN: dict[str, Any] = {
    "format": "lamella.cluster",
    "format_version": 1,
    "coordinator": "home",
    "nodes": [
        {"name": "home", "memory_bytes": 1000, "speeds": {"int8": {"prompt_seconds": 0.5, "token_seconds": 1.0}}},
        {"name": "far", "memory_bytes": 2000, "speeds": {}, "tier": "cloud", "watts": 5.0},
    ],
    "links": [{"between": ["far", "home"], "bytes_per_second": 1e6, "round_trip_seconds": 0.25}],
}
CLUSTER = Cluster(
    (Node("home", 1000, {"int8": Speed(0.5, 1.0)}), Node("far", 2000, {}, tier="cloud", watts=5.0)),
    "home",
    {("far", "home"): Link(1e6, 0.25)},
)


def _read(**changed: Any) -> Cluster:
    return read_cluster(json.dumps({**WRITTEN, **changed}).encode(), "cluster.json")


def test_a_cluster_is_what_its_document_says() -> None:
    assert _read() == CLUSTER
    assert _read(transfer="mesh", tool_version="9.9.9").transfer == "mesh"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": "lamella.placement"}, "is not a lamella.cluster document"),
        ({"format_version": FORMAT_VERSION + 1}, f"has format version {FORMAT_VERSION + 1}; this version reads 1 to"),
        ({"format_version": 0}, "has format version 0"),
        ({"format_version": "1"}, "has format version '1'"),
        ({"format_version": None}, "has format version None"),
        ({"nodes": [{"name": "home", "speeds": {}}]}, r"memory_bytes"),
        ({"nodes": [{**WRITTEN["nodes"][0], "memory_bytes": 1.5}]}, "Expected `int`"),
        ({"transfer": "ring"}, "ring"),
    ],
)
def test_a_document_of_another_form_is_refused_by_name(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtifactError, match=f"^cluster.json.*{says}"):
        _read(**changed)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^cluster\.json is not"):
        read_cluster(data, "cluster.json")


def test_a_document_of_no_possible_cluster_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no link between far and home"):
        _read(links=[])


@pytest.mark.parametrize("loss_budget", [0.5, math.inf])
def test_a_placement_can_be_written_whatever_is_unlimited(loss_budget: float) -> None:
    """JSON has no infinity."""
    layers = (Layer({"int8": Option(100, 0.25)}), Layer({"int8": Option(100, 0.25)}))
    problem = PlacementProblem(layers, CLUSTER, Request(4, 3), loss_budget)
    solution = place(problem)
    document = json.loads(json.dumps(placement_document(problem, solution), allow_nan=False))
    assert document["format"] == "lamella.placement"
    assert document["format_version"] == FORMAT_VERSION
    assert document["segments"] == [{"node": "home", "first": 0, "precisions": ["int8", "int8"]}]
    assert document["loss_budget"] == (0.5 if loss_budget == 0.5 else None)
    assert document["objective"] == solution.account.objective
    assert document["account"]["loss"] == 0.5
