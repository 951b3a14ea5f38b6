"""What plans of a model are predicted to lose, and how fast this machine multiplies by each type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lamella.api.models import load, load_spec
from lamella.core.artifacts import (
    Measurement,
    Plan,
    TensorLoss,
    check_same_structure,
    check_same_weights,
)
from lamella.core.cores import usable_cores
from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelSpec
from lamella.core.precision import GGML_TYPES
from lamella.core.units import format_bytes
from lamella.llama.kernels import KernelTimes
from lamella.planning import frontier as planning_frontier
from lamella.planning.constraints import TypePrice
from lamella.planning.request import PlanRequest
from lamella.planning.specs import is_builtin
from lamella.run.kernel_table import KernelTable
from lamella.run.prices import prices_of

_LOSS_METRIC = "metric sensitivity, for each tensor"


def kernel_times(
    type_names: Iterable[str], n_threads: int = 0, *, cache_folder: Path | None = None
) -> dict[str, KernelTimes]:
    """How fast this machine multiplies by weights of each ggml type, mapped and repacked.

    Args:
        n_threads: 0 for all cores that this process may use.
        cache_folder: as ``open_engine``.
    """
    return _kernel_table(n_threads, cache_folder).times(type_names)


def measured_prices(
    losses: Sequence[TensorLoss], n_threads: int = 0, *, cache_folder: Path | None = None
) -> dict[str, TypePrice]:
    """How fast this machine multiplies by each type that the losses name; half a second for each, the first time.

    Types that cannot be written without an importance matrix have no price.  Arguments as ``kernel_times``.
    """
    names = {name for loss in losses for name in loss.by_type if name in GGML_TYPES}
    return prices_of(kernel_times(names, n_threads, cache_folder=cache_folder))


def predicted_loss(model: str | Path, measurement: Measurement, plan: Plan) -> float | None:
    """Nats a token that any plan of the model is predicted to lose; None where it has a type without a prediction.

    Raises:
        ArtifactError: the plan or the measurement are for another model.
    """
    request = loss_request(model, measurement)
    check_same_structure(plan, request.spec.identity, "the plan")
    return planning_frontier.predicted_loss(request, plan.tensors)


def loss_request(model: str | Path, measurement: Measurement) -> PlanRequest:
    """A request of no limits, with the losses that were measured.

    Raises:
        ArtifactError: the measurement is of another model.
    """
    request = PlanRequest(load_spec(model), losses=losses_of(measurement))
    check_same_weights(measurement, request.spec.identity)
    return request


def losses_of(measurement: Measurement | None) -> tuple[TensorLoss, ...]:
    """The tensors' losses.

    Raises:
        InvalidRequest: there is no measurement, or one of a metric that looks at layers only.
    """
    if measurement is None:
        raise InvalidRequest(f"policy knapsack needs a measurement of what each tensor loses ({_LOSS_METRIC})")
    if not measurement.tensors:
        raise InvalidRequest(
            f"a measurement of metric {measurement.metric} does not say what each tensor loses at each type; "
            f"policy knapsack needs one that does ({_LOSS_METRIC})"
        )
    return tuple(measurement.tensors)


def weights_bytes(model: str | Path, spec: ModelSpec, file_bytes: int | None) -> int | None:
    """What a file of so many bytes leaves for weights: the source's metadata is in it too."""
    if file_bytes is None or is_builtin(str(model)):
        return file_bytes
    metadata = sum(path.stat().st_size for path in load(model).paths) - spec.n_bytes
    if metadata >= file_bytes:
        raise InvalidRequest(
            f"a file of {format_bytes(file_bytes)} holds no weights: the metadata alone takes {format_bytes(metadata)}"
        )
    return file_bytes - metadata


def _kernel_table(n_threads: int, cache_folder: Path | None) -> KernelTable:
    return KernelTable(cache_folder / "kernels.json" if cache_folder else None, n_threads or usable_cores())
