"""The story in Python: look at a model, measure it, plan, build a store, run it.

    import lamella

    measurement = lamella.measure("model.gguf", metric="jaccard")
    plan = lamella.plan("model.gguf", policy="lsaq", memory="6GiB", measurement=measurement)
    lamella.build("model.gguf", "store", plan, name="six-gib")
    with lamella.Engine.open(lamella.Store.open(Path("store")), "six-gib") as engine:
        print(engine.generate("Once upon a time").text())

These functions join the stages; each stage can also be used alone (docs/architecture.md).  The command line calls
nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella import measuring
from lamella.core.artifacts import Measurement, Plan, check_same_structure, from_json, to_json
from lamella.core.errors import ArtifactError, InvalidRequest
from lamella.core.model import ModelSpec
from lamella.core.precision import Scheme
from lamella.core.units import format_bytes, parse_bytes
from lamella.evaluating import Evaluation, Exams
from lamella.evaluating import evaluate as evaluate_variants
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.handles import ContextOptions, usable_cores
from lamella.llama.imatrix import ImportanceMatrix, read_imatrix, serialise_imatrix
from lamella.llama.kernels import KernelTimes
from lamella.measuring import ImportanceSettings, MeasureSettings, measure_model, parse_calibration
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from lamella.planning.specs import builtin_spec
from lamella.quantize.build import BuildReport, OnProgress, build_variant
from lamella.quantize.tuned import Tuning
from lamella.resources import devices as resource_devices
from lamella.resources.catalogue import SPEC_PREFIX, model_path
from lamella.resources.devices import DeviceMemory
from lamella.resources.need import default_reserve, file_overhead, spec_overhead
from lamella.resources.waiting import Waiting, wait_until_fits
from lamella.run.engine import Engine, EngineOptions
from lamella.run.kernel_table import KernelTable
from lamella.store.files import storage_errors
from lamella.store.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_CONTEXT = 4096

OnMeasure = Callable[[int, int, str], None]


def _silent(_done: int, _total: int, _what: str) -> None:
    """Default progress: none."""


def load(model: str | Path) -> ModelFile:
    """Open a model: a path, or ``smollm2``.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    return read_model(model_path(str(model)))


def load_spec(model: str | Path) -> ModelSpec:
    """The shape of a model file, or of a built-in specification (``spec:llama-2-7b``).

    Raises:
        ModelError, InvalidRequest: there is none.
    """
    name = str(model)
    return builtin_spec(name.removeprefix(SPEC_PREFIX)) if name.startswith(SPEC_PREFIX) else load(model).spec


def devices(wanted: str | None = None) -> tuple[tuple[DeviceMemory, ...], DeviceMemory]:
    """Every device with its memory, and the one to use (LSAQ's resource detection).

    Raises:
        InvalidRequest: no device of the wanted name.
    """
    found = resource_devices.detect()
    return found, resource_devices.choose(found, wanted)


def measure(
    model: str | Path,
    metric: str = "jaccard",
    *,
    calibration: Sequence[str] = (),
    settings: MeasureSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> Measurement:
    """What each layer contributes.

    Args:
        metric: ``jaccard``, ``cosine``, ``outlier`` or ``weight-difference``.
        calibration: text files, each ``FILE`` or ``TASK=FILE``; none: the model writes its own text.

    Raises:
        InvalidRequest: unknown metric, text missing or too short.
        ModelError: the model cannot be used.
    """
    files = [parse_calibration(text) for text in calibration]
    return measure_model(load(model), [metric], files, settings, on_progress)[metric]


def gather_importance(
    model: str | Path,
    calibration: Sequence[str],
    *,
    settings: ImportanceSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> ImportanceMatrix:
    """Mean squared activation of each weight column: what rounding weighs its errors by.

    Args:
        calibration: text files, each ``FILE`` or ``TASK=FILE``.

    Raises:
        InvalidRequest: text missing or too short.
        ModelError: the model cannot be used.
    """
    files = [parse_calibration(text) for text in calibration]
    return measuring.gather_importance(load(model), files, settings, on_progress)


def tune_on(
    model: str | Path,
    calibration: Sequence[str],
    *,
    settings: ImportanceSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> Tuning:
    """Tune rounding on text: each block of a row makes up for the errors of those before it (``quantize.tuned``).

    The text is read while ``build`` runs, for as many layers at a time as 1 GiB of covariances allows, and only for
    layers that the store lacks.  What was gathered last is kept, for the next variant.

    Args:
        calibration: text files, each ``FILE`` or ``TASK=FILE``.
        settings: how they are read; None for windows of 512 tokens, the first 32 of each.

    Raises:
        InvalidRequest: text missing; ``build`` says if it is too short.
        ModelError: the model cannot be used.
    """
    source = load(model)
    text = measuring.covariance_text([parse_calibration(file) for file in calibration], settings)

    @functools.lru_cache(maxsize=1)
    def gather(layers: tuple[int, ...]) -> Mapping[str, NDArray[np.float32]]:
        return measuring.gather_covariances(source, text, layers, on_progress)

    return Tuning(text.identity, lambda layers: gather(tuple(layers)))


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory a plan may use.

    Attributes:
        limit_bytes: what the user allows; None for what the device has free.
        device: name of the device to look at; None for the one with most free memory.
    """

    limit_bytes: int | None = None
    device: str | None = None

    def now(self) -> int:
        """Bytes that may be used at this moment."""
        free = devices(self.device)[1].free_bytes
        return free if self.limit_bytes is None else min(free, self.limit_bytes)


def plan(
    model: str | Path,
    policy: str = "lsaq",
    *,
    memory: str | int | None = None,
    alpha: float | None = None,
    precision: str | None = None,
    outside: str | None = None,
    scheme: Scheme = "block",
    context: int | None = None,
    parallel: int = 1,
    kv_type: str = "F16",
    measurement: Measurement | None = None,
    device: str | None = None,
    wait: bool = False,
    timeout_seconds: float | None = None,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    on_progress: OnMeasure = _silent,
) -> Plan:
    """Decide how many bits each layer gets.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        policy: ``uniform``, ``lsaq`` or ``alpha``.
        memory: bytes or a size such as ``6GiB``; None: what the device has free, for ``lsaq`` and for ``uniform``
            without a precision; the others then plan without a limit.
        alpha: aggressiveness of ``alpha``, in (0, 1]; smaller is more aggressive.
        precision: of ``uniform``: a menu name or a ggml type.
        outside: precision of embedding and head, or ``keep``; None: the policy's default.
        context: tokens for each sequence that memory is kept for; None: up to 4096 (for a specification: LSAQ's
            own arithmetic, whose reserve covers it).
        measurement: importance of the layers; None: ``jaccard`` on text that the model writes, or for a
            specification the prior of ``planning.importance``.
        wait: wait until memory is free instead of failing (LSAQ's pause).

    Raises:
        DoesNotFit: nothing fits; says by how much.
        InvalidRequest: arguments without a meaning.
        ArtifactError: the measurement is of another model.
    """
    budget = Budget(_as_bytes(memory), device)
    base = _base_request(model, policy, measurement, scheme, alpha, precision, outside, on_progress)
    needs = _needs(model, base.spec, policy, context, parallel, kv_type)

    def try_plan(budget_bytes: int | None) -> Plan:
        return make_plan(policy, replace(needs(base, budget_bytes), budget_bytes=budget_bytes))

    needs_limit = policy == "lsaq" or (policy == "uniform" and precision is None)
    limit = budget.limit_bytes
    if limit is None and not needs_limit:
        return try_plan(None)
    if not wait:
        return try_plan(budget.now() if limit is None else limit)
    if limit is not None:
        try_plan(limit)  # what does not fit the limit itself is not worth waiting for
    return wait_until_fits(try_plan, budget.now, timeout_seconds=timeout_seconds, on_wait=on_wait)


def build(
    model: str | Path,
    store: str | Path,
    plan: Plan,
    name: str | None = None,
    *,
    importance: ImportanceMatrix | None = None,
    tuning: Tuning | None = None,
    n_threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Make a variant; layers that the store already has at these types are shared.

    Args:
        store: folder; made if it does not exist.
        name: of the variant; None: after the plan (``default_name``).
        importance: what ggml's rounding weighs columns by (``gather_importance``, ``read_importance``).
        tuning: instead of it, what rounding makes up for its errors with (``tune_on``).

    Raises:
        ArtifactError: plan or importance matrix are for another model.
        StoreError, StorageFailed, ModelError: see ``lamella.quantize.build.build_variant``.
    """
    source = load(model)
    check_same_structure(plan, source.spec.identity, "the plan")
    opened = Store.create(Path(store), source.spec.identity)
    return build_variant(
        source,
        plan,
        opened,
        name or default_name(plan),
        importance=importance,
        tuning=tuning,
        n_threads=n_threads,
        on_progress=on_progress,
    )


def open_engine(
    store: str | Path,
    variant: str | None = None,
    options: EngineOptions | None = None,
    *,
    cache_folder: Path | None = None,
) -> Engine:
    """Load a variant of a store; close the engine after use.

    Args:
        variant: None takes the largest.
        cache_folder: where measured speeds of this machine are kept between runs.

    Raises:
        StoreError, EngineFailed: see ``Engine.open``.
    """
    options = options or EngineOptions()
    kernels = _kernel_table(options.context.n_threads, cache_folder)
    return Engine.open(Store.open(Path(store)), variant, options, kernels)


def evaluate(
    store: str | Path,
    variants: Sequence[str] = (),
    exams: Exams | None = None,
    *,
    reference: str | None = None,
    on_progress: OnMeasure = _silent,
) -> Evaluation:
    """How good variants are: perplexity, divergence from a reference, tasks; one load for all of them.

    Args:
        variants: names; none: all of the store.
        exams: the text and the tasks.
        reference: what the others are compared with; None: the largest variant of the store.

    Raises:
        InvalidRequest, StoreError, EngineFailed: see ``lamella.evaluating.evaluation.evaluate``.
    """
    opened = Store.open(Path(store))
    return evaluate_variants(opened, variants, exams, reference=reference, on_progress=on_progress)


def kernel_times(
    type_names: Iterable[str], n_threads: int = 0, *, cache_folder: Path | None = None
) -> dict[str, KernelTimes]:
    """How fast this machine multiplies by weights of each ggml type, mapped and repacked.

    Args:
        n_threads: 0 for all cores that this process may use.
        cache_folder: as ``open_engine``.
    """
    return _kernel_table(n_threads, cache_folder).times(type_names)


def _kernel_table(n_threads: int, cache_folder: Path | None) -> KernelTable:
    return KernelTable(cache_folder / "kernels.json" if cache_folder else None, n_threads or usable_cores())


def default_name(plan: Plan) -> str:
    """A variant's name after its plan: ``alpha-0.5``, ``uniform-int4``, ``lsaq-6.00GiB``; ``-channel`` behind it."""
    if plan.policy == "alpha":
        name = f"alpha-{plan.settings['alpha']:g}"
    elif plan.policy == "uniform":
        name = f"uniform-{plan.layers[0].precision}"
    else:
        limit = plan.budget_bytes
        name = plan.policy + (f"-{format_bytes(limit)}".replace(" ", "") if limit else "")
    return name if plan.scheme == "block" else f"{name}-{plan.scheme}"


def read_measurement(path: Path) -> Measurement:
    """Read a measurement file.

    Raises:
        ArtifactError: it cannot be read, or is no measurement.
    """
    return from_json(Measurement, _read(path), str(path))


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ArtifactError: it cannot be read, or is no plan.
    """
    return from_json(Plan, _read(path), str(path))


def write_artifact(artifact: Measurement | Plan, path: Path) -> None:
    """Write a document, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(to_json(artifact), path)


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, of Lamella or of llama-imatrix.

    Raises:
        ArtifactError: it cannot be read, or is none.
    """
    return read_imatrix(path)


def write_importance(matrix: ImportanceMatrix, path: Path) -> None:
    """Write an importance matrix as llama-imatrix does, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(serialise_imatrix(matrix), path)


def _write_whole(data: bytes, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with storage_errors(path, "writing", len(data)):
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def _as_bytes(memory: str | int | None) -> int | None:
    if isinstance(memory, int) and memory <= 0:
        raise InvalidRequest(f"a memory size must be more than zero bytes, not {memory}")
    return parse_bytes(memory) if isinstance(memory, str) else memory


def _base_request(
    model: str | Path,
    policy: str,
    measurement: Measurement | None,
    scheme: Scheme,
    alpha: float | None,
    precision: str | None,
    outside: str | None,
    on_progress: OnMeasure,
) -> PlanRequest:
    """The request without memory; measures the layers' importance where the policy needs it and nobody gave it."""
    request = PlanRequest(load_spec(model), scheme=scheme, alpha=alpha, precision=precision, outside=outside)
    if measurement is not None:
        check_same_structure(measurement, request.spec.identity, "the measurement")
    elif needs_measuring(model, policy):
        measurement = measure(model, on_progress=on_progress)
    if measurement is None:
        return request
    return replace(request, importance=measurement.importance(), settings={"metric": measurement.metric})


def needs_measuring(model: str | Path, policy: str) -> bool:
    """Whether a policy wants to know the layers' importance, and there are weights to measure it on."""
    return policy in ("lsaq", "alpha") and not str(model).startswith(SPEC_PREFIX)


def _needs(
    model: str | Path, spec: ModelSpec, policy: str, context: int | None, parallel: int, kv_type: str
) -> Callable[[PlanRequest, int | None], PlanRequest]:
    """How to add to a request what running needs besides weights; the dry run is made once."""
    is_spec = str(model).startswith(SPEC_PREFIX)
    if is_spec and policy == "lsaq" and context is None:
        return lambda request, _: request  # LSAQ's own arithmetic
    n_ctx = context if context is not None else min(DEFAULT_CONTEXT, spec.context_length or DEFAULT_CONTEXT)
    options = ContextOptions(n_ctx=n_ctx, n_sequences=parallel, kv_type=kv_type, n_outputs=parallel)
    settings: Mapping[str, int | float | str] = {"context": n_ctx, "parallel": parallel, "kv_type": kv_type.upper()}
    dry_run = spec_overhead(spec, options) if is_spec else file_overhead(load(model).paths, options)

    def add(request: PlanRequest, budget_bytes: int | None) -> PlanRequest:
        overhead = replace(dry_run, reserve_bytes=default_reserve(budget_bytes))
        return replace(request, overhead=overhead, settings={**request.settings, **settings})

    return add
