"""Machines and links: what they cost to cross, and which are none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lamella.core.errors import InvalidRequest
from lamella.planning.placement.cluster import Cluster, Link, Node, Speed, check_cluster

SPEEDS = {"int8": Speed(0.002, 0.01)}
HOME, FAR, THIRD = (Node(name, 1000, SPEEDS) for name in ("home", "far", "third"))
LINK = Link(1000.0, 0.5)
CLUSTER = Cluster((HOME, FAR), "home", {("home", "far"): LINK})


def test_each_message_waits_for_half_a_round_trip_and_all_bytes_for_the_line() -> None:
    assert LINK.seconds(2000) == 0.25 + 2
    assert LINK.seconds(2000, n_messages=4) == 4 * 0.25 + 2


def test_links_are_alike_in_both_directions_and_none_leads_home() -> None:
    assert CLUSTER.link("home", "far") is CLUSTER.link("far", "home") is LINK
    assert CLUSTER.link("far", "far") is None
    with pytest.raises(InvalidRequest, match="no link between far and third is described; known links: home-far"):
        CLUSTER.link("far", "third")


def test_nodes_are_found_by_name() -> None:
    assert CLUSTER.node("far") is FAR
    with pytest.raises(InvalidRequest, match="no node is called 'third'; there are home, far"):
        CLUSTER.node("third")


def test_a_star_needs_the_coordinators_links_and_a_mesh_all() -> None:
    links = {("home", "far"): LINK, ("third", "home"): LINK}
    star = Cluster((HOME, FAR, THIRD), "home", links)
    check_cluster(star)
    with pytest.raises(InvalidRequest, match="no link between far and third"):
        check_cluster(replace(star, transfer="mesh"))
    check_cluster(replace(star, transfer="mesh", links={**links, ("far", "third"): LINK}))
    with pytest.raises(InvalidRequest, match="no link between home and other"):
        check_cluster(replace(star, coordinator="other"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"nodes": ()}, "at least one node"),
        ({"nodes": (HOME, FAR, replace(HOME, memory_bytes=2000))}, "two nodes are called home"),
        ({"transfer": "ring"}, "'ring' is none of star, mesh"),
        ({"links": {("home", "far"): Link(0.0, 0.5)}}, "link home-far: .* not 0 and 0.5"),
        ({"links": {("home", "far"): Link(1000.0, -0.5)}}, "link home-far: .* not 1000 and -0.5"),
        ({"links": {("home", "far"): Link(math.nan, 0.5)}}, "link home-far"),
        ({"links": {("home", "far"): Link(1000.0, math.nan)}}, "link home-far"),
    ],
)
def test_a_cluster_that_is_none_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_cluster(replace(CLUSTER, **changed))


RATES = ("pass_seconds", "cell_seconds", "prompt_cell_seconds", "watts", "price_per_hour")


@pytest.mark.parametrize("number", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("rate", RATES)
def test_times_watts_and_prices_of_a_node_are_numbers(rate: str, number: float) -> None:
    wrong: dict[str, Any] = {rate: number}
    with pytest.raises(InvalidRequest, match="node far: times, watts and price must be finite and at least 0"):
        check_cluster(replace(CLUSTER, nodes=(HOME, replace(FAR, **wrong))))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"speeds": {"int8": Speed(-1.0, 0.1)}}, "times, watts and price"),
        ({"speeds": {"int8": Speed(0.1, math.inf)}}, "times, watts and price"),
        ({"seconds_limit": -1.0}, "a limit of -1 seconds"),
        ({"seconds_limit": math.nan}, "a limit of nan seconds"),
        ({"memory_bytes": -1}, "memory and buffers"),
        ({"buffer_bytes": -1}, "memory and buffers"),
        ({"tier": "moon"}, "tier 'moon' is none of edge, cloud"),
    ],
)
def test_a_node_that_is_none_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"node far: .*{says}"):
        check_cluster(replace(CLUSTER, nodes=(HOME, replace(FAR, **changed))))


def test_a_node_may_have_nothing_at_all() -> None:
    """A machine without memory or speeds is never chosen, and is no mistake."""
    check_cluster(replace(CLUSTER, nodes=(HOME, Node("far", 0, {}, seconds_limit=0.0))))
