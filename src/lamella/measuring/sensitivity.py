"""``sensitivity``: how far predictions stray when one tensor, or one layer, is stored in fewer bits.

    found = measure_sensitivity(read_model(path), [parse_calibration("text.txt")])
    found.tensors[0].mean                     # KL(reference || probed), nats a token

The model is loaded once and stays as it is.  For each probe the weight is pointed at a rounded copy, the same text is
read, and the distributions of the next token are compared with those of the untouched model, which are held
(``measuring.probes``).  One probe a tensor is enough for most: what other types would cost follows from their errors in
the tensor's products (``measuring.rounding_errors``).  The tensors that lose most are probed at a finer type, too: they
decide a plan, and a large loss need not shrink in step with the error.

That losses of single tensors add up is an assumption.  It is checked by rounding *all* tensors at once at several
types; the checks are part of the measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lamella.core.artifacts import AdditivityCheck, LayerScore, Measurement, TensorLoss
from lamella.core.cores import usable_cores
from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelSpec
from lamella.core.precision import GGML_TYPES, GgmlType
from lamella.llama.gguf import ModelFile, TensorData
from lamella.llama.imatrix import ImportanceMatrix
from lamella.llama.library import installed_version
from lamella.llama.model import Model
from lamella.llama.quantize import prepare
from lamella.measuring.calibration import CalibrationFile, read_texts
from lamella.measuring.inputs import InputStatistics, gather_inputs
from lamella.measuring.probes import Loss, Probes
from lamella.measuring.progress import Progress, named
from lamella.measuring.rounding_errors import LEFT_OUT, column_weights, errors_by_type, offered_types
from lamella.measuring.samples import Sampling, TaskWindows, task_windows
from lamella.measuring.scores import joint_scores
from lamella.measuring.settings import PROBE, MeasureSettings
from lamella.version import __version__

FILE_SAMPLES, FILE_WINDOW_TOKENS = 2, 224
SELF_SAMPLES, SELF_WINDOW_TOKENS = 8, 64
SHORTEST_WINDOW = 8
OTHER_PROBES = ("IQ4_NL", "Q5_0")
"""For tensors whose values are those of the probe's type already, which would lose nothing."""
LEAST_CHANGE = 0.01
"""Of the change that other probes make, their bits considered: a probe of less tells nothing of other types.

Values that were written in the probe's type and stored in 16 bits since change by 1e-6 to 1e-4 of that.
"""
FINER_PROBE = "Q5_1"
FINER_SHARE = 0.1
"""Of the tensors; a second probe of each would double the time for little."""
CHECKED_TYPES = ("Q8_0", "Q5_0", "Q4_0")
"""For the whole model at once: rows of 32 allow them, and what they lose spans two orders of magnitude."""

Losses = Mapping[str, Loss]
"""Task -> loss."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Lets an interrupted measurement go on.

    Attributes:
        done: losses of probes that an earlier run finished, by key.
        add: keeps those of one more.
    """

    done: Mapping[str, Losses]
    add: Callable[[str, Losses], None]


OpenJournal = Callable[[Mapping[str, object]], Journal]
"""Called with everything that the losses depend on."""


def no_journal(_: Mapping[str, object]) -> Journal:
    """Nothing was done before, and nothing is kept."""
    return Journal({}, lambda _key, _losses: None)


def measure_sensitivity(
    model_file: ModelFile,
    calibration: Sequence[CalibrationFile] = (),
    settings: MeasureSettings | None = None,
    *,
    importance: ImportanceMatrix | None = None,
    open_journal: OpenJournal = no_journal,
    on_progress: Progress = lambda _done, _total, _what: None,
) -> Measurement:
    """Probe every tensor, or every layer, of a model.

    Args:
        calibration: text, one file a task; without any the model writes its own.
        importance: what rounding weighs columns by, as the build will; types that need it are offered only with it.
        open_journal: given everything that the losses depend on, finds what an earlier run left.

    Raises:
        InvalidRequest: a text that cannot be used, a setting out of range, a probe that no tensor's rows allow.
        ArtifactError: the importance matrix is of another model.
        EngineFailed: llama.cpp cannot load the model, or the model computes NaN.
        InvalidWeights: a weight is NaN or infinite.
    """
    settings = settings or MeasureSettings()
    spec = model_file.spec
    if importance is not None:
        importance.check_model(spec.identity, spec.tensors)
    texts = read_texts(calibration)
    sampling = _sampling(settings, bool(texts))
    with Model.load(model_file.paths) as model:
        tasks = task_windows(model, texts, sampling, settings.n_threads, on_progress)
        described = _described(settings, sampling, importance)
        journal = open_journal(
            {
                "weights": spec.identity.weights,
                "texts": [[t.described.task, t.described.sha256] for t in tasks],
                "tool": __version__,
                "library": installed_version(),
                **described,
            }
        )
        with Probes(model_file, model, tasks, importance, settings.n_threads) as probes:
            todo = probes_of(model_file, settings, probes.names, importance)
            if settings.level == "layer":
                losses = _run(probes, todo, journal, "probing", on_progress)
                return _layer_measurement(spec, tasks, described, list(losses.values()))
            losses = _run(probes, todo | _checks(spec, probes.names), journal, "probing", on_progress)
            losses |= _run(probes, _finer_probes(spec, todo, losses), journal, "probing again", on_progress)
        inputs = gather_inputs(model, todo, tasks[0].windows[0], settings.n_threads)
    errors = _all_errors(model_file, todo, inputs, importance, settings.n_threads, on_progress)
    return _tensor_measurement(spec, tasks, described, todo, losses, errors)


def nothing_lost(spec: ModelSpec) -> Measurement:
    """What a measurement without an importance matrix would hold, with every loss 0.

    Plans by it are of the right sizes, and of no quality.
    For what must be known before minutes are spent on measuring: whether anything fits at all.
    """
    tensors = tuple(
        TensorLoss(t.name, PROBE, 0.0, 0.0, {offered.name: 0.0 for offered in offered_types(t, has_importance=False)})
        for t in spec.tensors
        if t.is_matrix
    )
    return Measurement("sensitivity", spec.identity, {}, (), (), tensors=tensors)


def probes_of(
    model_file: ModelFile, settings: MeasureSettings, names: frozenset[str], importance: ImportanceMatrix | None
) -> dict[str, dict[str, GgmlType]]:
    """What is rounded in each probe: key -> weight -> type.

    Raises:
        InvalidRequest: the probe's type fits no tensor, or says nothing of other types.
        InvalidWeights: a weight is NaN or infinite.
    """
    spec = model_file.spec
    if settings.level == "tensor" and settings.probe.upper() in LEFT_OUT:
        raise InvalidRequest(f"losses at other types cannot be told from probes at {settings.probe}; default: {PROBE}")
    probed = {
        t.name: target
        for t in spec.tensors
        if t.is_matrix
        and t.name in names
        and (target := _probe_type(model_file.tensors[t.name], settings.probe, importance)) is not None
    }
    if not probed:
        lengths = sorted({t.row_length for t in spec.tensors if t.is_matrix})
        raise InvalidRequest(f"no tensor can be probed at {settings.probe}: rows have {lengths} weights")
    if settings.level == "tensor":
        return {name: {name: target} for name, target in probed.items()}
    return {
        f"layer {layer.index}": {t.name: probed[t.name] for t in layer.tensors if t.name in probed}
        for layer in spec.layers
    }


def _finer_probes(
    spec: ModelSpec, todo: Mapping[str, Mapping[str, GgmlType]], losses: Mapping[str, Losses]
) -> dict[str, dict[str, GgmlType]]:
    """A second probe of the tensors that lose most."""
    finer = GGML_TYPES[FINER_PROBE]
    tensors = {t.name: t for t in spec.tensors}
    possible = [
        name
        for name, rounded in todo.items()
        if finer.bits_per_weight > rounded[name].bits_per_weight
        and finer.allows_row(tensors[name].row_length)
        and finer != tensors[name].type
    ]
    ranked = sorted(possible, key=lambda name: -joint(losses[name]).mean)
    return {_finer_key(name): {name: finer} for name in ranked[: math.ceil(FINER_SHARE * len(todo))]}


def _finer_key(name: str) -> str:
    return f"{name} at {FINER_PROBE}"


def _sampling(settings: MeasureSettings, has_text: bool) -> Sampling:
    samples, window_tokens = (FILE_SAMPLES, FILE_WINDOW_TOKENS) if has_text else (SELF_SAMPLES, SELF_WINDOW_TOKENS)
    wanted = settings.window_tokens or window_tokens
    if wanted < SHORTEST_WINDOW:
        raise InvalidRequest(f"sensitivity needs windows of at least {SHORTEST_WINDOW} tokens, not {wanted}")
    return Sampling(settings.samples or samples, wanted, settings.seed)


def _described(
    settings: MeasureSettings, sampling: Sampling, importance: ImportanceMatrix | None
) -> dict[str, int | float | str]:
    return {
        "level": settings.level,
        "probe": settings.probe.upper(),
        "importance": importance.digest() if importance else "",
        **sampling.described(),
    }


def _checks(spec: ModelSpec, names: frozenset[str]) -> dict[str, dict[str, GgmlType]]:
    return {f"all {name}": _whole(spec, GGML_TYPES[name], names) for name in CHECKED_TYPES}


def _whole(spec: ModelSpec, target: GgmlType, names: frozenset[str]) -> dict[str, GgmlType]:
    """All matrices of the model that can be of a type; those that are of it already change nothing."""
    return {t.name: target for t in spec.tensors if t.is_matrix and t.name in names and target.allows_row(t.row_length)}


def _probe_type(data: TensorData, probe: str, importance: ImportanceMatrix | None) -> GgmlType | None:
    """The probe for a tensor: the one asked for, or another where the tensor's values are of that type already."""
    named = [GGML_TYPES[name] for name in dict.fromkeys((probe.upper(), *OTHER_PROBES))]
    possible = [t for t in named if t.allows_row(data.spec.row_length) and t != data.spec.type]
    for target in possible:
        prepare(target)
    errors = errors_by_type(data, possible, column_weights(data.spec, importance))
    changes = {t.name: errors[t.name] * 4**t.bits_per_weight for t in possible}  # a bit more quarters the error
    least = LEAST_CHANGE * max(changes.values(), default=0.0)
    return next((t for t in possible if changes[t.name] >= least), None)


def _run(
    probes: Probes,
    todo: Mapping[str, Mapping[str, GgmlType]],
    journal: Journal,
    what: str,
    on_progress: Progress,
) -> dict[str, Losses]:
    count = named(on_progress, len(todo), what)
    found: dict[str, Losses] = {}
    for key, rounded in todo.items():
        if key in journal.done:
            found[key] = journal.done[key]
        else:
            found[key] = probes.losses(rounded)
            journal.add(key, found[key])
        count(len(found))
    return found


def _all_errors(
    model_file: ModelFile,
    names: Collection[str],
    inputs: Mapping[str, InputStatistics],
    importance: ImportanceMatrix | None,
    n_threads: int,
    on_progress: Progress,
) -> dict[str, dict[str, float]]:
    """Errors of every probed tensor at every type it may have."""
    count = named(on_progress, len(names), "comparing types")

    weights = {name: column_weights(model_file.tensors[name].spec, importance) for name in names}
    offered = {name: offered_types(model_file.tensors[name].spec, weights[name] is not None) for name in names}

    def compare(name: str) -> dict[str, float]:
        return errors_by_type(model_file.tensors[name], offered[name], weights[name], inputs.get(name))

    for target in {target for targets in offered.values() for target in targets}:
        prepare(target)
    errors: dict[str, dict[str, float]] = {}
    pool = ThreadPoolExecutor(n_threads or usable_cores(), "lamella-compare")
    try:
        for name, found in zip(names, pool.map(compare, names), strict=True):
            errors[name] = found
            count(len(errors))
    finally:
        pool.shutdown(cancel_futures=True)
    return errors


def _layer_measurement(
    spec: ModelSpec, tasks: Sequence[TaskWindows], described: Mapping[str, int | float | str], losses: Sequence[Losses]
) -> Measurement:
    per_task = {
        task.described.task: tuple(_score(i, found[task.described.task]) for i, found in enumerate(losses))
        for task in tasks
    }
    texts = tuple(task.described for task in tasks)
    return Measurement("sensitivity", spec.identity, described, texts, joint_scores(per_task), per_task=per_task)


def _tensor_measurement(
    spec: ModelSpec,
    tasks: Sequence[TaskWindows],
    described: Mapping[str, int | float | str],
    probed: Mapping[str, Mapping[str, GgmlType]],
    losses: Mapping[str, Losses],
    errors: Mapping[str, Mapping[str, float]],
) -> Measurement:
    tensors = tuple(
        tensor_loss(
            name,
            probed[name][name].name,
            joint(losses[name]),
            errors[name],
            finer=joint(losses[_finer_key(name)]) if _finer_key(name) in losses else None,
        )
        for name in errors
    )
    checks = tuple(_check(name, joint(losses[f"all {name}"]), tensors) for name in CHECKED_TYPES)
    per_task = {
        task.described.task: tuple(
            _sum(layer.index, [losses[t.name][task.described.task] for t in layer.tensors if t.name in losses])
            for layer in spec.layers
        )
        for task in tasks
    }
    return Measurement(
        "sensitivity", spec.identity, described, tuple(task.described for task in tasks), joint_scores(per_task),
        per_task=per_task, tensors=tensors, checks=checks,
    )  # fmt: skip


def tensor_loss(
    name: str, probe: str, measured: Loss, errors: Mapping[str, float], *, finer: Loss | None = None
) -> TensorLoss:
    """What a tensor loses at every type: the measured loss, times how much larger each type's error is.

    A loss that drowns in its noise counts as one standard error, so that no tensor looks free.  A probe that changed
    nothing says nothing of types that do; they are left out.

    Args:
        errors: ``errors_by_type`` of the tensor.
        finer: loss at ``FINER_PROBE``.
    """
    also = {} if finer is None else {FINER_PROBE: finer.mean}
    if errors[probe] <= 0:
        unchanged = {t: 0.0 for t, error in errors.items() if error <= 0}
        return TensorLoss(name, probe, measured.mean, measured.standard_error, unchanged, also)
    points = {errors[probe]: _above_noise(measured)}
    if finer is not None and 0 < errors[FINER_PROBE] < errors[probe]:
        points[errors[FINER_PROBE]] = min(_above_noise(finer), _above_noise(measured))
    by_type = {t: loss_at(error, points) for t, error in errors.items()}
    return TensorLoss(name, probe, measured.mean, measured.standard_error, by_type, also)


def loss_at(error: float, points: Mapping[float, float]) -> float:
    """Loss of a type by its error: in proportion below and above what was measured, by a power law in between.

    Args:
        points: error -> loss, one or two; no error is 0.
    """
    (low, low_loss), (high, high_loss) = min(points.items()), max(points.items())
    if error <= low:
        return low_loss * error / low
    if error >= high or low_loss <= 0:
        return high_loss * error / high
    return low_loss * math.exp(math.log(error / low) * math.log(high_loss / low_loss) / math.log(high / low))


def _above_noise(loss: Loss) -> float:
    return max(loss.mean, loss.standard_error)


def joint(losses: Losses) -> Loss:
    """Mean over tasks, each counting the same (``scores.joint_scores``)."""
    mean = math.fsum(loss.mean for loss in losses.values()) / len(losses)
    return Loss(mean, math.sqrt(math.fsum(loss.standard_error**2 for loss in losses.values())) / len(losses))


def _check(type_name: str, measured: Loss, tensors: Sequence[TensorLoss]) -> AdditivityCheck:
    predicted = math.fsum(t.by_type.get(type_name, 0.0) for t in tensors)
    return AdditivityCheck(type_name, predicted, measured.mean, measured.standard_error)


def _score(layer: int, loss: Loss) -> LayerScore:
    return LayerScore(layer, loss.mean, loss.standard_error)


def _sum(layer: int, losses: Sequence[Loss]) -> LayerScore:
    mean = math.fsum(x.mean for x in losses)
    return LayerScore(layer, mean, math.sqrt(math.fsum(x.standard_error**2 for x in losses)))
