"""Small random placement problems, and their best placement by trying all of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from lamella.planning.placement.cluster import Cluster, Link, Node, Speed, Transfer
from lamella.planning.placement.problem import Exchange, Layer, Option, PlacementProblem, Request
from lamella.planning.placement.result import Placement, Segment, account, violations
from lamella.planning.placement.several import SeveralProblem, Tenant
from lamella.planning.placement.several.problem import several_violations, total

PRECISIONS = ("int8", "int6", "int4")


def small_problem(seed: int, transfer: Transfer = "star") -> PlacementProblem:
    """2 to 5 layers, 1 to 4 nodes, 1 to 3 precisions; some cannot be placed."""
    draw = random.Random(seed)
    names = PRECISIONS[: draw.randint(1, 3)]
    layers = tuple(_layer(draw, names) for _ in range(draw.randint(2, 5)))
    nodes = tuple(_node(draw, f"n{i}", names, len(layers)) for i in range(draw.randint(1, 4)))
    home = draw.choice(["home", nodes[0].name])
    machines = ["home", *(node.name for node in nodes)]
    links = {pair: Link(draw.uniform(50, 2000), draw.uniform(0, 0.2)) for pair in itertools.combinations(machines, 2)}
    low = sum(min(option.loss for option in layer.options.values()) for layer in layers)
    high = sum(max(option.loss for option in layer.options.values()) for layer in layers)
    budget = draw.choice([draw.uniform(low, high), draw.uniform((low + high) / 2, high), high, float("inf")])
    exchange = draw.choice([Exchange(), Exchange(draw.uniform(0, 0.1), draw.uniform(0, 500.0))])
    request = Request(draw.randint(1, 30), draw.randint(1, 5), batch_tokens=draw.choice([4, 512]))
    return PlacementProblem(layers, Cluster(nodes, home, links, transfer), request, budget, 64, 0.25, exchange)


def _layer(draw: random.Random, names: tuple[str, ...]) -> Layer:
    here = draw.sample(names, draw.randint(1, len(names)))
    options = {name: Option(draw.randint(10, 100), draw.uniform(0, 1)) for name in here}
    return Layer(options, draw.randint(0, 1), draw.randint(1, 100), draw.uniform(0.5, 2))


def _node(draw: random.Random, name: str, names: tuple[str, ...], n_layers: int) -> Node:
    here = draw.sample(names, draw.randint(min(2, len(names)), len(names)))
    speeds = {p: Speed(draw.uniform(0, 0.1), draw.uniform(0.01, 1)) for p in here}
    memory = draw.randint(60, 160 * n_layers)
    limit = draw.choice([float("inf"), float("inf"), draw.uniform(0.5 * n_layers, 3.0 * n_layers)])
    pass_seconds, watts = draw.uniform(0, 0.3), draw.uniform(0, 50)
    return Node(name, memory, speeds, pass_seconds, draw.randint(0, 30), "edge", watts, 2.0, limit)


def best_by_trial(problem: PlacementProblem) -> float | None:
    """Objective of the best placement; None where there is none."""
    possible = (account(problem, p).objective for p in every_placement(problem) if not violations(problem, p))
    return min(possible, default=None)


def every_placement(problem: PlacementProblem) -> Iterator[Placement]:
    """All ways to cut the layers, to order the nodes and to choose precisions that the layers have."""
    n_layers, names = len(problem.layers), [node.name for node in problem.cluster.nodes]
    for n_segments in range(1, min(n_layers, len(names)) + 1):
        for cuts in itertools.combinations(range(1, n_layers), n_segments - 1):
            edges = (0, *cuts, n_layers)
            for nodes in itertools.permutations(names, n_segments):
                for picks in itertools.product(*(layer.options for layer in problem.layers)):
                    pieces = zip(nodes, edges, edges[1:], strict=False)
                    yield Placement(tuple(Segment(node, a, tuple(picks[a:b])) for node, a, b in pieces))


def small_several(seed: int) -> SeveralProblem:
    """Two models of two and three layers on two nodes, which mostly hold both."""
    draw = random.Random(seed)
    names = ("int8", "int4")
    nodes = tuple(
        Node(
            f"n{i}",
            draw.randint(120, 400),
            {p: Speed(draw.uniform(0, 0.01), draw.uniform(0.05, 0.3)) for p in names},
            draw.uniform(0, 0.1),
            draw.randint(0, 20),
        )
        for i in range(2)
    )
    links = {("n0", "n1"): Link(1000.0, 0.05)}
    cluster = Cluster(nodes, "n0", links)
    return SeveralProblem(tuple(_tenant(draw, f"m{k}", cluster, 2 + k) for k in range(2)), draw.choice([1.0, 0.7]))


def _tenant(draw: random.Random, name: str, cluster: Cluster, n_layers: int) -> Tenant:
    layers = tuple(
        Layer(
            {"int8": Option(draw.randint(60, 100), 0.1), "int4": Option(draw.randint(30, 60), draw.uniform(0.2, 1))},
            activation_bytes=10,
        )
        for _ in range(n_layers)
    )
    problem = PlacementProblem(layers, cluster, Request(8, 4), draw.uniform(0.4, 1.0) * n_layers, 10, 0.1)
    return Tenant(name, problem, draw.choice([0.0, draw.uniform(0.1, 0.6)]), draw.choice([1.0, 3.0]))


def best_of_several(problem: SeveralProblem) -> float:
    """Objective of the best choice of placements, by trying all; infinite where there is none."""
    each = [list(every_placement(tenant.problem)) for tenant in problem.tenants]
    costs = [[account(t.problem, p) for p in ps] for t, ps in zip(problem.tenants, each, strict=True)]
    choices = itertools.product(*(range(len(placements)) for placements in each))
    return min(
        (
            total(problem, [costs[k][i] for k, i in enumerate(choice)])
            for choice in choices
            if not several_violations(problem, [each[k][i] for k, i in enumerate(choice)])
        ),
        default=math.inf,
    )
