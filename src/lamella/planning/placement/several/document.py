"""Models that share a cluster, as a JSON document, and what was planned for them as another (docs/placement.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lamella.planning.placement.document import FORMAT_VERSION, decode, placement_document
from lamella.planning.placement.result import Solution
from lamella.planning.placement.several.problem import SeveralProblem, SeveralSolution, use
from lamella.version import __version__

TENANTS_FORMAT, SHARED_FORMAT = "lamella.tenants", "lamella.shared-placement"


@dataclass(frozen=True, slots=True)
class TenantDescription:
    """One of the models.

    Attributes:
        name: what it is called in the plan.
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: path of what its layers lose; relative ones are beside the document.
        delta: loss allowed over all layers, in the measurement's unit.
        requests_per_second: that come for it.
        weight: of its seconds in the objective.
    """

    name: str
    model: str
    measurement: str
    delta: float
    precisions: tuple[str, ...] = ("int8", "int6", "int5", "int4", "int3")
    prompt_tokens: int = 512
    new_tokens: int = 128
    sequences: int = 1
    kv_type: str = "F16"
    requests_per_second: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TenantsDescription:
    """All of them.

    Attributes:
        busy_limit: share of a node's time that their requests may take.
    """

    format: str
    format_version: int
    tenants: tuple[TenantDescription, ...] = field(default=())
    busy_limit: float = 1.0
    tool_version: str = ""


def read_tenants(data: bytes, source: str) -> TenantsDescription:
    """Read a document.

    Args:
        source: named in errors, usually the path.

    Raises:
        ArtifactError: no such document, of a newer format, or with fields that are missing or of another type.
    """
    return decode(data, source, TENANTS_FORMAT, TenantsDescription)


def shared_document(problem: SeveralProblem, solution: SeveralSolution) -> dict[str, Any]:
    """What was planned, as dictionaries and lists."""
    planned = zip(problem.tenants, solution.placements, solution.accounts, strict=True)
    return {
        "format": SHARED_FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "planner": solution.planner,
        "busy_limit": problem.busy_limit,
        "objective": solution.objective,
        "bound": solution.bound,
        "gap": solution.gap if solution.gap < float("inf") else None,
        "tenants": [
            {
                "name": tenant.name,
                "requests_per_second": tenant.requests_per_second,
                "weight": tenant.weight,
                **_alone(placement_document(tenant.problem, Solution(placement, account, 0.0, solution.planner))),
            }
            for tenant, placement, account in planned
        ],
        "nodes": _taken(problem, solution),
    }


def _alone(document: dict[str, Any]) -> dict[str, Any]:
    """What a placement's document says of one model; the bound is that of all together."""
    left_out = ("format", "format_version", "tool_version", "planner", "bound", "gap")
    return {key: value for key, value in document.items() if key not in left_out}


def _taken(problem: SeveralProblem, solution: SeveralSolution) -> dict[str, Any]:
    taken = use(problem.tenants, solution.placements)
    return {
        node.name: {
            "memory_bytes": node.memory_bytes,
            "used_bytes": taken.n_bytes.get(node.name, 0),
            "busy": taken.busy.get(node.name, 0.0),
        }
        for node in problem.cluster.nodes
    }
