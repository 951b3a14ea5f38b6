"""Placements: which node of a cluster runs each layer, and at which precision, for one model or for several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.api.documents import artifact_bytes, read_measurement
from lamella.api.models import load_spec
from lamella.core.artifacts import Measurement, check_same_weights
from lamella.core.errors import NoPlacement
from lamella.planning.placement import Cluster, PlacementProblem, Request, Solution, place
from lamella.planning.placement.baselines import BASELINES, baseline
from lamella.planning.placement.document import read_cluster as _read_cluster
from lamella.planning.placement.layers import hidden_state_bytes, layers_of
from lamella.planning.placement.several import SeveralProblem, SeveralSolution, Tenant, place_several, solve_several
from lamella.planning.placement.several.document import read_tenants
from lamella.planning.placement.several.problem import check_several
from lamella.planning.placement.several.program import TIME_LIMIT_SECONDS
from lamella.planning.placement.solver import GAP
from lamella.planning.specs import is_builtin


def read_cluster(path: Path) -> Cluster:
    """Read a cluster document (docs/placement.md).

    Raises:
        ArtifactError: it cannot be read, or is none.
        InvalidRequest: what it describes is no cluster.
    """
    return _read_cluster(artifact_bytes(path), str(path))


def placement_problem(
    model: str | Path,
    cluster: Cluster,
    measurement: Measurement,
    *,
    precisions: Sequence[str],
    prompt_tokens: int,
    new_tokens: int,
    sequences: int = 1,
    loss_budget: float,
    kv_type: str = "F16",
) -> PlacementProblem:
    """The question that placement planners answer, of a model and what was measured on it.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: of metric sensitivity, or weight-difference.
        loss_budget: in the measurement's unit, over all layers.

    Raises:
        ArtifactError: the measurement is for another model.
        InvalidRequest: it does not say what layers lose at each precision.
    """
    spec = load_spec(model)
    if not is_builtin(str(model)):
        check_same_weights(measurement, spec.identity)
    layers = layers_of(spec, measurement, precisions, kv_type)
    request = Request(prompt_tokens, new_tokens, sequences=sequences)
    return PlacementProblem(layers, cluster, request, loss_budget, hidden_state_bytes(spec))


def several_problem(path: Path, cluster: Cluster) -> SeveralProblem:
    """The question of several models that share a cluster, of a document that names them (docs/placement.md).

    Raises:
        ArtifactError: the document, a model or a measurement cannot be read, or do not belong together.
        InvalidRequest: what they describe has no meaning.
    """
    described = read_tenants(artifact_bytes(path), str(path))
    tenants = []
    for tenant in described.tenants:
        problem = placement_problem(
            tenant.model, cluster, read_measurement(path.parent / tenant.measurement), precisions=tenant.precisions,
            prompt_tokens=tenant.prompt_tokens, new_tokens=tenant.new_tokens, sequences=tenant.sequences,
            loss_budget=tenant.delta, kv_type=tenant.kv_type,
        )  # fmt: skip
        tenants.append(Tenant(tenant.name, problem, tenant.requests_per_second, tenant.weight))
    return SeveralProblem(tuple(tenants), described.busy_limit)


def several_placements(
    problem: SeveralProblem, *, exact: bool = False, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> SeveralSolution:
    """Where the layers of each model run, and at which precision, with what is proven about it.

    Args:
        exact: by the integer program, for a few small models; else by the heuristic.
        time_limit_seconds: of the program.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: the models do not fit together, or no way was found in which they do.
    """
    check_several(problem)
    return solve_several(problem, time_limit_seconds=time_limit_seconds) if exact else place_several(problem)


def placement(problem: PlacementProblem, gap: float = GAP) -> Solution:
    """The joint plan: where each layer runs and at which precision, to a proven gap.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: no placement keeps all limits, or none was found.
    """
    return place(problem, gap)


def placement_baselines(problem: PlacementProblem) -> dict[str, Solution | str]:
    """What simple rules make of the same question: a solution, or why there is none."""
    found: dict[str, Solution | str] = {}
    for name in BASELINES:
        try:
            found[name] = baseline(name, problem)
        except NoPlacement as error:
            found[name] = str(error)
    return found
