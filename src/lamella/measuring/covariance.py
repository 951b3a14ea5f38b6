"""Gathering how the inputs of weights go together: the mean of x x^T, for rounding that makes up for its errors.

    text = covariance_text([parse_calibration("text.txt")])
    found = gather_covariances(read_model(path), text, layers=range(4))
    found["blk.0.attn_q.weight"]                # shape (row length, row length)

An importance matrix (``columns``) is the diagonal of this.  The whole is n times larger: 95 MB for rows of 4,864
weights.  So callers ask for as many layers at a time as they have memory for, and the pass ends after the last of
them.  Weights that are multiplied by the same input (q, k and v; gate and up) share one array.  Text is read as an
importance matrix reads it.

Experts see few of the tokens each; their inputs are left out, and so are stacked weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.core.model import TensorSpec
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile
from lamella.llama.model import Model
from lamella.llama.observing import Product, ProductObserver
from lamella.measuring.activations import PASS_TOKENS
from lamella.measuring.calibration import CalibrationFile, TaskText, read_texts
from lamella.measuring.columns import ImportanceSettings, consecutive_windows
from lamella.measuring.progress import Progress, named

DEFAULT_WINDOWS = 32
"""Of each text.  docs/log.md has what more and fewer give."""


@dataclass(frozen=True, slots=True)
class CovarianceText:
    """Text to gather on, and how to read it."""

    texts: tuple[TaskText, ...]
    settings: ImportanceSettings

    @property
    def identity(self) -> str:
        """SHA-256 of what the text contributes: contents and windows, not names."""
        parts = [[t.sha256 for t in self.texts], self.settings.window_tokens, self.settings.windows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def covariance_text(
    calibration: Sequence[CalibrationFile], settings: ImportanceSettings | None = None
) -> CovarianceText:
    """Read the files.

    Raises:
        InvalidRequest: no text, or one that cannot be used.
    """
    if not calibration:
        raise InvalidRequest("tuned rounding is tuned on text: name a calibration file")
    return CovarianceText(read_texts(calibration), settings or ImportanceSettings(windows=DEFAULT_WINDOWS))


def gather_covariances(
    model_file: ModelFile,
    text: CovarianceText,
    layers: Collection[int],
    on_progress: Progress = lambda _done, _total, _what: None,
) -> dict[str, NDArray[np.float32]]:
    """Mean of x x^T over the inputs of every plain matrix of the layers, by name; equal inputs share an array.

    Windows longer than the model was trained for are cut to that.

    Raises:
        InvalidRequest: a text that is too short.
        EngineFailed: llama.cpp cannot load the model, or the model computes NaN or infinity.
    """
    with Model.load(model_file.paths, n_gpu_layers=text.settings.n_gpu_layers) as model:
        n = min(text.settings.window_tokens, model.trained_context or text.settings.window_tokens)
        settings = replace(text.settings, window_tokens=n)
        windows = [w for t in text.texts for w in consecutive_windows(t, model.vocabulary, settings)]
        sums = _Sums(_matrices(model_file, layers))
        last = max(layers)
        n_pass = min(PASS_TOKENS, n)
        options = ContextOptions(n, n_batch=n_pass, n_outputs=n_pass, n_threads=settings.n_threads)
        observer = ProductObserver(sums.wants, sums.add, f"l_out-{last}")
        what = f"reading text for layers {min(layers)} to {last}"
        count = named(on_progress, len(windows), what)
        with Context(model, options, products=observer) as context:
            for done, window in enumerate(windows, 1):
                context.forget()
                for first in range(0, len(window), n_pass):
                    part = window[first : first + n_pass]
                    context.decode(part, first, n_outputs=len(part))
                    sums.end_pass()
                count(done)
    return sums.finished()


def _matrices(model_file: ModelFile, layers: Collection[int]) -> dict[str, TensorSpec]:
    return {t.name: t for t in model_file.spec.tensors if t.layer in layers and t.is_matrix and len(t.shape) == 2}


@dataclass(slots=True)
class _Sums:
    """Running sums of x^T x, one for each distinct input.

    The first pass shows every weight with its input and finds out who shares one; later passes show only the weight
    that stands for all.
    """

    matrices: dict[str, TensorSpec]
    stands_for: dict[str, str] = field(default_factory=dict)
    totals: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    first_inputs: dict[str, NDArray[np.float32]] | None = field(default_factory=dict)

    def wants(self, weight: str) -> bool:
        return weight in self.matrices if self.first_inputs is not None else weight in self.totals

    def add(self, product: Product) -> None:
        if product.experts is not None or product.n_matrices != 1:
            return
        inputs = np.ascontiguousarray(product.inputs[:, 0])
        if self.first_inputs is not None and not self._is_new(product.weight, inputs):
            return
        added = inputs.T @ inputs
        if product.weight in self.totals:
            self.totals[product.weight] += added
        else:
            self.totals[product.weight] = added
        self.counts[product.weight] = self.counts.get(product.weight, 0) + len(inputs)

    def _is_new(self, weight: str, inputs: NDArray[np.float32]) -> bool:
        assert self.first_inputs is not None
        layer = self.matrices[weight].layer
        near = ((k, seen) for k, seen in self.first_inputs.items() if self.matrices[k].layer == layer)
        same = (k for k, seen in near if k != weight and np.array_equal(seen, inputs))
        other = next(same, weight)
        self.stands_for[weight] = other
        if other == weight:
            self.first_inputs[weight] = inputs
        return other == weight

    def end_pass(self) -> None:
        self.first_inputs = None

    def finished(self) -> dict[str, NDArray[np.float32]]:
        if not self.totals:
            raise EngineFailed("llama.cpp shows no products of this model's layers; rounding cannot be tuned")
        for name, total in self.totals.items():
            total /= self.counts[name]
            if not np.isfinite(total.diagonal()).all():
                raise EngineFailed(f"the model computes NaN or infinity in the inputs of {name}")
        return {weight: self.totals[other] for weight, other in self.stands_for.items()}
