"""Clusters and placements as JSON documents (docs/placement.md shows one of each)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from lamella.core.errors import ArtifactError
from lamella.core.foreign import UNREADABLE
from lamella.planning.placement.cluster import Cluster, Link, Node, Transfer, check_cluster
from lamella.planning.placement.problem import PlacementProblem
from lamella.planning.placement.result import Solution
from lamella.version import __version__

FORMAT_VERSION = 1
T = TypeVar("T")
CLUSTER_FORMAT, PLACEMENT_FORMAT = "lamella.cluster", "lamella.placement"


@dataclass(frozen=True, slots=True)
class _Link:
    between: tuple[str, str]
    bytes_per_second: float
    round_trip_seconds: float


@dataclass(frozen=True, slots=True)
class _Cluster:
    format: str
    format_version: int
    coordinator: str
    nodes: tuple[Node, ...]
    links: tuple[_Link, ...] = ()
    transfer: Transfer = "star"
    tool_version: str = ""


def read_cluster(data: bytes, source: str) -> Cluster:
    """Read a cluster document.

    Args:
        source: named in errors, usually the path.

    Raises:
        ArtifactError: no such document, of a newer format, or with fields that are missing or of another type.
        InvalidRequest: what it describes is no cluster (``check_cluster``).
    """
    read = decode(data, source, CLUSTER_FORMAT, _Cluster)
    links = {link.between: Link(link.bytes_per_second, link.round_trip_seconds) for link in read.links}
    cluster = Cluster(read.nodes, read.coordinator, links, read.transfer)
    check_cluster(cluster)
    return cluster


def decode(data: bytes, source: str, document_format: str, kind: type[T]) -> T:
    """Read a document of a format.

    Raises:
        ArtifactError: no such document, of a newer format, or with fields that are missing or of another type.
    """
    try:
        header = msgspec.json.decode(data)
    except UNREADABLE as error:
        raise ArtifactError(f"{source} is not JSON: {error}") from None
    if not isinstance(header, dict) or header.get("format") != document_format:
        raise ArtifactError(f"{source} is not a {document_format} document")
    version = header.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ArtifactError(f"{source} has format version {version!r}; this version reads 1 to {FORMAT_VERSION}")
    try:
        return msgspec.convert(header, kind)
    except UNREADABLE as error:
        raise ArtifactError(f"{source}: {error}") from None


def placement_document(problem: PlacementProblem, solution: Solution) -> dict[str, Any]:
    """A placement with what it costs, as dictionaries and lists."""
    account = solution.account
    return {
        "format": PLACEMENT_FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "planner": solution.planner,
        "coordinator": problem.cluster.coordinator,
        "segments": msgspec.to_builtins(solution.placement.segments),
        "request": msgspec.to_builtins(problem.request),
        "loss_budget": problem.loss_budget if problem.loss_budget < float("inf") else None,
        "seconds": account.seconds,
        "objective": account.objective,
        "bound": solution.bound if abs(solution.bound) < float("inf") else None,
        "gap": solution.gap if solution.gap < float("inf") else None,
        "account": msgspec.to_builtins(account),
    }
