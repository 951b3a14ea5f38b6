"""Placements: which node of a cluster runs each layer, and at which precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.api.models import load_spec
from lamella.core.artifacts import Measurement, check_same_weights
from lamella.core.errors import ArtifactError, NoPlacement
from lamella.planning.placement import Cluster, PlacementProblem, Request, Solution, place
from lamella.planning.placement.baselines import BASELINES, baseline
from lamella.planning.placement.document import read_cluster as _read_cluster
from lamella.planning.placement.layers import hidden_state_bytes, layers_of
from lamella.planning.placement.solver import GAP
from lamella.resources.catalogue import SPEC_PREFIX


def read_cluster(path: Path) -> Cluster:
    """Read a cluster document (docs/placement.md).

    Raises:
        ArtifactError: it cannot be read, or is none.
        InvalidRequest: what it describes is no cluster.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    return _read_cluster(data, str(path))


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
    if not str(model).startswith(SPEC_PREFIX):
        check_same_weights(measurement, spec.identity)
    layers = layers_of(spec, measurement, precisions, kv_type)
    request = Request(prompt_tokens, new_tokens, sequences=sequences)
    return PlacementProblem(layers, cluster, request, loss_budget, hidden_state_bytes(spec))


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
