"""A running model whose weights can be rounded for a moment, and what that does to its predictions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.closing import Closing
from lamella.core.cores import usable_cores
from lamella.core.errors import EngineFailed
from lamella.core.precision import GgmlType
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile
from lamella.llama.imatrix import ImportanceMatrix
from lamella.llama.logits import Column, Logits, Reference, survey
from lamella.llama.model import Model
from lamella.llama.weights import OwnWeight, locate_weights, read_state, write_state
from lamella.measuring.calibration import Window
from lamella.measuring.rounding_errors import column_weights, round_tensor
from lamella.measuring.samples import TaskWindows

SCORED_SHARE = 0.75
"""Of a window: its first tokens have little to go by and stray for other reasons."""
HELD_BYTES = 512 * 2**20
"""Of the reference's logits and probabilities; with a large vocabulary fewer positions are scored."""


@dataclass(frozen=True, slots=True)
class Loss:
    """KL(reference || probed) over the tokens of one task, in nats: their mean and its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the untouched model says about the last tokens of a window."""

    window: Window
    said: Reference


class Probes(Closing):
    """A loaded model, the text it reads and what it says about it untouched.  Owns context and rounded copies.

    Attributes:
        names: weights that take part in computing, and so can be probed.
    """

    def __init__(
        self,
        model_file: ModelFile,
        model: Model,
        tasks: Sequence[TaskWindows],
        importance: ImportanceMatrix | None = None,
        n_threads: int = 0,
    ) -> None:
        """Read every window with the model as it is.

        Raises:
            EngineFailed: llama.cpp cannot, or the model computes NaN.
        """
        self._file, self._importance = model_file, importance
        weights = locate_weights(model)
        self._kept = {n: [(a, read_state(a)) for a in weight.addresses] for n, weight in weights.items()}
        self.names = frozenset(self._kept)
        windows = [w for task in tasks for w in task.windows]
        longest = max(map(len, windows))
        self._n_scored = max(
            1, min(int(SCORED_SHARE * longest), HELD_BYTES // (8 * model.vocabulary.n_tokens * len(windows)))
        )
        options = ContextOptions(longest, n_batch=longest, n_outputs=self._n_scored, n_threads=n_threads)
        self._n_threads = n_threads or usable_cores()
        self._context = Context(model, options)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._readings = {task.described.task: [self._read(w) for w in task.windows] for task in tasks}
            on_failure.pop_all()

    def losses(self, rounded: Mapping[str, GgmlType]) -> dict[str, Loss]:
        """Point weights at rounded copies, read every window, and point them back.

        Args:
            rounded: weight -> type.

        Returns:
            Task -> loss.

        Raises:
            EngineFailed: the probed model computes NaN.
            InvalidWeights: a weight is NaN or infinite.
        """
        with contextlib.ExitStack() as copies:
            for name, target in rounded.items():
                self._round(name, target, copies)
            found = {task: self._strayed(readings) for task, readings in self._readings.items()}
        for task, values in found.items():
            if not np.isfinite(values).all():
                raise EngineFailed(f"with {', '.join(rounded)} rounded, the model computes NaN or infinity on {task}")
        return {task: Loss(float(v.mean()), float(v.std(ddof=1)) / math.sqrt(len(v))) for task, v in found.items()}

    def close(self) -> None:
        """Free everything but the model."""
        self._context.close()

    def _round(self, name: str, target: GgmlType, copies: contextlib.ExitStack) -> None:
        data = self._file.tensors[name]
        rows = round_tensor(data, target, column_weights(data.spec, self._importance))
        copy = OwnWeight(rows, target, data.spec.shape)
        copies.callback(copy.close)  # closed last: callbacks run in reverse
        for address, state in self._kept[name]:
            copies.callback(write_state, address, state)
            write_state(address, copy.state)

    def _read(self, window: Window) -> _Reading:
        logits = self._logits(window)
        normalizers = survey(logits, self._n_threads).normalizers
        if not np.isfinite(normalizers).all():
            raise EngineFailed("the model computes NaN or infinity on this text")
        said = Reference(logits.shape)
        said.hold(logits, normalizers, self._n_threads)
        return _Reading(window, said)

    def _strayed(self, readings: Sequence[_Reading]) -> NDArray[np.float64]:
        """Divergence at every scored token."""
        found: list[Column] = []
        for reading in readings:
            logits = self._logits(reading.window)
            normalizers = survey(logits, self._n_threads).normalizers
            found.append(reading.said.divergences(logits, normalizers, self._n_threads))
        return np.concatenate(found)

    def _logits(self, window: Window) -> Logits:
        n_scored = min(self._n_scored, len(window) - 1)
        self._context.keep(0)
        self._context.decode(window, 0, n_outputs=n_scored)
        return self._context.last_logits(n_scored)
