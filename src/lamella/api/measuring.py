"""A model and text in, what each layer or tensor contributes out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella import measuring
from lamella.api.documents import read_measurement, write_artifact
from lamella.api.models import OnMeasure, load, silent
from lamella.core.artifacts import (
    Measurement,
)
from lamella.core.errors import ArtifactError
from lamella.llama.imatrix import ImportanceMatrix
from lamella.measuring import ImportanceSettings, MeasureSettings, measure_model, parse_calibration
from lamella.measuring.journal import journal_file
from lamella.measuring.sensitivity import no_journal
from lamella.quantize.tuned import Tuning
from lamella.store.files import storage_errors
from lamella.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def measure(
    model: str | Path,
    metric: str = "jaccard",
    *,
    calibration: Sequence[str] = (),
    settings: MeasureSettings | None = None,
    importance: ImportanceMatrix | None = None,
    journal: Path | None = None,
    on_progress: OnMeasure = silent,
) -> Measurement:
    """What each layer, or each tensor, contributes.

    Args:
        metric: ``jaccard``, ``cosine``, ``outlier``, ``weight-difference`` or ``sensitivity``.
        calibration: text files, each ``FILE`` or ``TASK=FILE``; none: the model writes its own text.
        importance: of ``sensitivity``: the matrix that the build will round with.
        journal: of ``sensitivity``: file for finished probes, so that an interrupted run goes on; removed at the end.

    Raises:
        InvalidRequest: unknown metric, text missing or too short.
        ModelError: the model cannot be used.
    """
    files = [parse_calibration(text) for text in calibration]
    with contextlib.ExitStack() as stack:
        open_journal = stack.enter_context(journal_file(journal)) if journal else no_journal
        found = measure_model(
            load(model), [metric], files, settings, on_progress, importance=importance, open_journal=open_journal
        )
    return found[metric]


def measure_once(
    model: str | Path,
    metric: str,
    cache_folder: Path,
    *,
    settings: MeasureSettings | None = None,
    on_progress: OnMeasure = silent,
) -> Measurement:
    """``measure`` on text that the model writes, remembered in the cache: the same weights are measured once.

    Interrupted measurements of sensitivity go on where they were.

    Raises:
        InvalidRequest, ModelError: as ``measure``.
        StorageFailed: the cache folder cannot be written.
    """
    settings = settings or MeasureSettings()
    source = load(model)
    asked = f"{source.spec.identity.weights} {metric} {replace(settings, n_threads=0)} {__version__}"
    path = cache_folder / "measurements" / f"{metric}-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(ArtifactError):
        return read_measurement(path)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    found = measure(model, metric, settings=settings, journal=path.with_suffix(".probes"), on_progress=on_progress)
    write_artifact(found, path)
    return found


def gather_importance(
    model: str | Path,
    calibration: Sequence[str],
    *,
    settings: ImportanceSettings | None = None,
    on_progress: OnMeasure = silent,
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
    on_progress: OnMeasure = silent,
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
