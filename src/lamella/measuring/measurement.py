"""``measure_model``: one call, any number of metrics, at most one pass a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lamella.core.artifacts import CalibrationText, Measurement, Metric
from lamella.core.errors import InvalidRequest
from lamella.llama.gguf import ModelFile, TensorData
from lamella.llama.imatrix import ImportanceMatrix
from lamella.llama.model import Model
from lamella.measuring import weights
from lamella.measuring.activations import Activations, read_activations
from lamella.measuring.calibration import CalibrationFile, read_texts
from lamella.measuring.progress import Progress, named, shifted
from lamella.measuring.samples import Sampling, TaskWindows, task_windows
from lamella.measuring.scores import exact_scores, joint_scores, task_scores
from lamella.measuring.sensitivity import OpenJournal, measure_sensitivity, no_journal
from lamella.measuring.settings import MeasureSettings
from lamella.measuring.tokensets import check_embedding, layer_distances

ACTIVATION_METRICS: tuple[Metric, ...] = ("jaccard", "cosine")
WEIGHT_METRICS: tuple[Metric, ...] = ("outlier", "weight-difference")
METRICS: tuple[Metric, ...] = (*ACTIVATION_METRICS, *WEIGHT_METRICS, "sensitivity")

FILE_SAMPLES, FILE_WINDOW_TOKENS = 32, 128
SELF_SAMPLES, SELF_WINDOW_TOKENS = 16, 64  # writing a token costs more than reading one


def measure_model(
    model_file: ModelFile,
    metrics: Sequence[Metric] = ("jaccard",),
    calibration: Sequence[CalibrationFile] = (),
    settings: MeasureSettings | None = None,
    on_progress: Progress = lambda _done, _total, _what: None,
    *,
    importance: ImportanceMatrix | None = None,
    open_journal: OpenJournal = no_journal,
) -> dict[Metric, Measurement]:
    """Score every layer of a model by each metric.

    Args:
        calibration: text for ``jaccard``, ``cosine`` and ``sensitivity``, one file a task; without any the model writes
            its own.  The other metrics read no text.
        importance: of ``sensitivity``: what rounding weighs columns by, as the build will.
        open_journal: of ``sensitivity``: finds and keeps finished probes, so that an interrupted run can go on.

    Returns:
        Metric -> measurement, in the order asked.

    Raises:
        InvalidRequest: an unknown metric, a calibration file that cannot be used, a setting out of range.
        ArtifactError: the importance matrix is of another model.
        EngineFailed: llama.cpp cannot load the model, or does not show its layers.
        InvalidWeights: a weight is NaN or infinite.
    """
    settings = settings or MeasureSettings()
    _check_metrics(metrics)
    measured: dict[Metric, Measurement] = {}
    if any(m in ACTIVATION_METRICS for m in metrics):
        measured |= _measure_activations(model_file, metrics, calibration, settings, on_progress)
    if "outlier" in metrics:
        measured["outlier"] = _measure_outliers(model_file, settings, on_progress)
    if "weight-difference" in metrics:
        measured["weight-difference"] = _measure_differences(model_file, settings, on_progress)
    if "sensitivity" in metrics:
        measured["sensitivity"] = measure_sensitivity(
            model_file, calibration, settings, importance=importance, open_journal=open_journal, on_progress=on_progress
        )
    return {metric: measured[metric] for metric in metrics}


def _check_metrics(metrics: Sequence[Metric]) -> None:
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics:
        problem = f"unknown metric '{unknown[0]}'" if unknown else "no metric asked"
        raise InvalidRequest(f"{problem}; known: {', '.join(METRICS)}")


def _measure_activations(
    model_file: ModelFile,
    metrics: Sequence[Metric],
    calibration: Sequence[CalibrationFile],
    settings: MeasureSettings,
    on_progress: Progress,
) -> dict[Metric, Measurement]:
    embedding = check_embedding(model_file, settings.k) if "jaccard" in metrics else None
    texts = read_texts(calibration)
    sampling = Sampling(
        settings.samples or (FILE_SAMPLES if texts else SELF_SAMPLES),
        settings.window_tokens or (FILE_WINDOW_TOKENS if texts else SELF_WINDOW_TOKENS),
        settings.seed,
    )
    with Model.load(model_file.paths, n_gpu_layers=settings.n_gpu_layers) as model:
        tasks = task_windows(model, texts, sampling, settings.n_threads, on_progress)
        by_task = _read_tasks(model, tasks, settings, on_progress)
    described = [task.described for task in tasks]
    measured: dict[Metric, Measurement] = {}
    if "cosine" in metrics:
        values = {task: activations.cosine for task, activations in by_task.items()}
        measured["cosine"] = _sampled("cosine", model_file, sampling.described(), described, values)
    if embedding is not None:
        values = _jaccard(by_task, embedding, settings.k, on_progress)
        measured["jaccard"] = _sampled(
            "jaccard", model_file, {"k": settings.k} | sampling.described(), described, values
        )
    return measured


def _read_tasks(
    model: Model, tasks: Sequence[TaskWindows], settings: MeasureSettings, on_progress: Progress
) -> dict[str, Activations]:
    count = named(on_progress, sum(len(task.windows) for task in tasks), "reading layers")
    found: dict[str, Activations] = {}
    done = 0
    for task in tasks:
        found[task.described.task] = read_activations(
            model, task.windows, n_threads=settings.n_threads, on_sample=shifted(count, done)
        )
        done += len(task.windows)
    return found


def _jaccard(
    by_task: dict[str, Activations], embedding: TensorData, k: int, on_progress: Progress
) -> dict[str, NDArray[np.float64]]:
    """All tasks at once, so that the embedding is read once."""
    states = np.concatenate([activations.last_states for activations in by_task.values()])
    n_rows = embedding.spec.n_rows
    values = layer_distances(states, embedding, k, named(on_progress, n_rows, "comparing token sets"))
    ends = np.cumsum([len(activations.last_states) for activations in by_task.values()])[:-1]
    return dict(zip(by_task, np.split(values, ends), strict=True))


def _sampled(
    metric: Metric,
    model_file: ModelFile,
    described: dict[str, int | float | str],
    texts: Sequence[CalibrationText],
    values: dict[str, NDArray[np.float64]],
) -> Measurement:
    per_task = {task: task_scores(of_samples) for task, of_samples in values.items()}
    return Measurement(
        metric, model_file.spec.identity, described, tuple(texts), joint_scores(per_task), per_task=per_task
    )


def _measure_outliers(model_file: ModelFile, settings: MeasureSettings, on_progress: Progress) -> Measurement:
    total = 2 * _matrix_weights(model_file)
    shares = weights.outlier_shares(
        model_file,
        n_threads=settings.n_threads,
        on_weights=named(on_progress, total, "counting outliers"),
    )
    described: dict[str, int | float | str] = {"z_score": weights.Z_SCORE}
    return Measurement("outlier", model_file.spec.identity, described, (), exact_scores(shares))


def _measure_differences(model_file: ModelFile, settings: MeasureSettings, on_progress: Progress) -> Measurement:
    total = _matrix_weights(model_file)
    differences = weights.weight_differences(
        model_file,
        settings.scheme,
        n_threads=settings.n_threads,
        on_weights=named(on_progress, total, "rounding weights"),
    )
    per_precision = {name: exact_scores(values) for name, values in differences.items()}
    shown = "int4" if "int4" in per_precision else next(reversed(per_precision))
    return Measurement(
        "weight-difference",
        model_file.spec.identity,
        {"scheme": settings.scheme, "precision": shown},
        (),
        per_precision[shown],
        per_precision=per_precision,
    )


def _matrix_weights(model_file: ModelFile) -> int:
    return sum(t.n_weights for layer in model_file.spec.layers for t in layer.matrices)
