"""What several models ask of the same nodes, and what a choice of placements costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes
from lamella.planning.placement.cluster import Cluster
from lamella.planning.placement.problem import PlacementProblem, check_problem
from lamella.planning.placement.result import TOLERANCE, Account, Placement, account, gap_of, violations


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of the models.

    Attributes:
        problem: the model, its request and its loss budget; its cluster is everybody's.
        requests_per_second: that come for it; they take the nodes' time.
        weight: of its seconds in the objective.
    """

    name: str
    problem: PlacementProblem
    requests_per_second: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SeveralProblem:
    """Models to place on one cluster: least weighted seconds, within every node's memory and time.

    Attributes:
        busy_limit: share of a node's time that requests of all models may take.
    """

    tenants: tuple[Tenant, ...]
    busy_limit: float = 1.0

    @property
    def cluster(self) -> Cluster:
        return self.tenants[0].problem.cluster


@dataclass(frozen=True, slots=True)
class SeveralSolution:
    """A placement for each model, in order, together within all limits.

    Attributes:
        objective: weighted sum of the models' objectives.
        bound: no choice of placements has less.
        planner: who found it.
    """

    placements: tuple[Placement, ...]
    accounts: tuple[Account, ...]
    objective: float
    bound: float
    planner: str

    @property
    def gap(self) -> float:
        """By what share of the bound the objective may be above the best one."""
        return gap_of(self.objective, self.bound)


def check_several(problem: SeveralProblem) -> None:
    """Refuse a question without meaning.

    Raises:
        InvalidRequest: no models, different clusters, nodes with a time limit of their own, negative rates or weights.
    """
    if not problem.tenants:
        raise InvalidRequest("there must be at least one model to place")
    for tenant in problem.tenants:
        check_problem(tenant.problem)
        if tenant.problem.cluster != problem.cluster:
            raise InvalidRequest(f"{tenant.name} is for another cluster than {problem.tenants[0].name}")
        if not (tenant.requests_per_second >= 0 and 0 <= tenant.weight < math.inf):
            raise InvalidRequest(f"{tenant.name}: requests per second and weight must be at least 0")
    limited = [node.name for node in problem.cluster.nodes if node.seconds_limit < math.inf]
    if limited:
        raise InvalidRequest(f"{', '.join(limited)}: with several models, time is limited by busy_limit alone")


def total(problem: SeveralProblem, accounts: Sequence[Account]) -> float:
    """Weighted sum of the models' objectives."""
    return math.fsum(t.weight * a.objective for t, a in zip(problem.tenants, accounts, strict=True))


@dataclass(frozen=True, slots=True)
class Use:
    """What is taken of the nodes: bytes, and share of the time, by name."""

    n_bytes: Mapping[str, int]
    busy: Mapping[str, float]


def use(tenants: Sequence[Tenant], placements: Sequence[Placement]) -> Use:
    """Sum over the models."""
    n_bytes, busy = defaultdict[str, int](int), defaultdict[str, float](float)
    for tenant, placement in zip(tenants, placements, strict=True):
        costs = account(tenant.problem, placement)
        for name, used in costs.node_bytes.items():
            n_bytes[name] += used
            busy[name] += tenant.requests_per_second * costs.compute_seconds[name]
    return Use(n_bytes, busy)


def several_violations(problem: SeveralProblem, placements: Sequence[Placement]) -> tuple[str, ...]:
    """Each limit that the placements break, alone or together, in words."""
    found = [
        f"{tenant.name}: {broken}"
        for tenant, placement in zip(problem.tenants, placements, strict=True)
        for broken in violations(tenant.problem, placement)
    ]
    if found:
        return tuple(found)
    taken = use(problem.tenants, placements)
    for node in problem.cluster.nodes:
        used, busy = taken.n_bytes.get(node.name, 0), taken.busy.get(node.name, 0.0)
        if used > node.memory_bytes:
            found.append(f"{node.name} needs {format_bytes(used)}, has {format_bytes(node.memory_bytes)}")
        if busy > problem.busy_limit * (1 + TOLERANCE * (1 + len(problem.tenants))):
            found.append(f"{node.name} is busy {busy:.6g} of its time, may {problem.busy_limit:.6g}")
    return tuple(found)
