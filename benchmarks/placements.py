"""Random clusters and models of a chosen size, for the benchmark and the tests of placement."""

from __future__ import annotations

import random
from dataclasses import replace

from lamella.planning.placement.cluster import Cluster, Link, Node, Speed, Transfer
from lamella.planning.placement.problem import Layer, Option, PlacementProblem, Request
from lamella.planning.placement.several.problem import SeveralProblem, Tenant

BITS = {"fp16": 16.0, "int8": 8.5, "int6": 6.6, "int5": 5.5, "int4": 4.5, "int3": 3.4}
LAYER_WEIGHTS = 855_000_000
"""Of a model of 70 billion weights in 80 layers."""


def random_problem(seed: int, n_layers: int, n_nodes: int, transfer: Transfer = "star") -> PlacementProblem:
    """A model that needs several unequal nodes: they hold 5 to 10 bits a weight, 60 to 85 % of these set the budget."""
    draw = random.Random(seed)
    names = list(BITS)
    layers = tuple(_layer(draw, names) for _ in range(n_layers))
    held_bits = draw.uniform(5, 10)
    nodes = _nodes(draw, n_nodes, names, n_layers * LAYER_WEIGHTS * held_bits / 8)
    machines = ["coordinator", *(node.name for node in nodes)]
    links = {
        (a, b): Link(10 ** draw.uniform(7, 9.2), 10 ** draw.uniform(-4, -2))
        for i, a in enumerate(machines)
        for b in machines[i + 1 :]
    }
    at_bits = held_bits * draw.uniform(0.6, 0.85)
    budget = sum(min((abs(BITS[n] - at_bits), o.loss) for n, o in layer.options.items())[1] for layer in layers)
    cluster = Cluster(nodes, "coordinator" if draw.random() < 0.5 else nodes[0].name, links, transfer)
    request = Request(draw.choice([64, 512, 4096]), draw.choice([16, 128, 512]))
    return PlacementProblem(layers, cluster, request, budget, input_bytes=16384)


def random_several(seed: int, n_tenants: int, n_nodes: int, n_layers: int) -> SeveralProblem:
    """Models of unequal size that share nodes, which hold them at 5 to 9 bits and would be busy half of their time."""
    draw = random.Random(seed)
    names = list(BITS)
    sizes = [max(2, round(n_layers * draw.uniform(0.6, 1.0))) for _ in range(n_tenants)]
    memory_bytes = sum(sizes) * LAYER_WEIGHTS * draw.uniform(5, 9) / 8
    nodes = tuple(replace(node, buffer_bytes=2**24) for node in _nodes(draw, n_nodes, names, memory_bytes))
    links = {
        ("coordinator", node.name): Link(10 ** draw.uniform(7.5, 9.2), 10 ** draw.uniform(-4, -3)) for node in nodes
    }
    cluster = Cluster(nodes, "coordinator", links)
    tenants = []
    for k, size in enumerate(sizes):
        layers = tuple(_layer(draw, names) for _ in range(size))
        budget = sum(layer.options[draw.choice(["int4", "int5", "int6"])].loss for layer in layers)
        request = Request(draw.choice([64, 512]), draw.choice([16, 128]))
        problem = PlacementProblem(layers, cluster, request, budget, input_bytes=16384)
        typical = sum(problem.layer_seconds(i, draw.choice(nodes), "int4") or 0.0 for i in range(size))
        rate = draw.uniform(0.2, 0.8) * n_nodes / n_tenants / typical
        tenants.append(Tenant(f"model-{k}", problem, rate, draw.choice([1.0, 2.0])))
    return SeveralProblem(tuple(tenants))


def _layer(draw: random.Random, names: list[str]) -> Layer:
    weights = LAYER_WEIGHTS * draw.choice([1.0, 1.0, 1.0, 0.9, 1.1])
    scale = draw.lognormvariate(-4, 0.8)
    options = {
        name: Option(int(weights * BITS[name] / 8), scale * 4.0 ** (4.5 - BITS[name]) * draw.lognormvariate(0, 0.2))
        for name in names
    }
    return Layer(options, kv_bytes_per_token=4096, activation_bytes=16384, work=weights / LAYER_WEIGHTS)


def _nodes(draw: random.Random, n_nodes: int, names: list[str], memory_bytes: float) -> tuple[Node, ...]:
    shares = [draw.lognormvariate(0, 0.6) for _ in range(n_nodes)]
    return tuple(
        Node(
            f"node-{i}",
            int(memory_bytes * share / sum(shares)),
            _speeds(draw, names),
            pass_seconds=10 ** draw.uniform(-4.5, -3),
            buffer_bytes=draw.randrange(2**27, 2**29),
        )
        for i, share in enumerate(shares)
    )


def _speeds(draw: random.Random, names: list[str]) -> dict[str, Speed]:
    """Token time by memory bandwidth, 30 to 900 GB/s; prompt time by arithmetic, dearer for odd precisions."""
    bytes_per_second, multiplications_per_second = 10 ** draw.uniform(10.5, 12), 10 ** draw.uniform(12, 14)
    return {
        name: Speed(
            2 * LAYER_WEIGHTS / multiplications_per_second * draw.uniform(0.9, 1.4),
            LAYER_WEIGHTS * BITS[name] / 8 / bytes_per_second * draw.uniform(1.0, 1.3),
        )
        for name in names
    }
