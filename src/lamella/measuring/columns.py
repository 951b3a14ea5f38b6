"""Gathering an importance matrix: mean squared activation of each input column of each weight.

    matrix = gather_importance(read_model(path), [parse_calibration("text.txt")])

The evaluation callback shows every matrix product with its inputs; their squares are summed for each column, for each
expert where a weight has several.  Text is read as llama-imatrix reads it (tools/imatrix/imatrix.cpp): cut into
consecutive windows of 512 tokens, the first token of each replaced by BOS where the model wants one.  This is a pass
of its own: ``jaccard`` and ``cosine`` read short windows spread over the text, and end before the head.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.core.model import ModelSpec
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile
from lamella.llama.imatrix import ColumnSums, ImportanceMatrix
from lamella.llama.model import Model
from lamella.llama.observing import Product, ProductObserver
from lamella.llama.vocabulary import Vocabulary
from lamella.measuring.activations import PASS_TOKENS
from lamella.measuring.calibration import CalibrationFile, TaskText, Window, read_texts
from lamella.measuring.progress import Count, Progress, ignore, named


@dataclass(frozen=True, slots=True)
class ImportanceSettings:
    """How an importance matrix is gathered.

    Attributes:
        window_tokens: tokens in a window; what llama-imatrix calls n_ctx.
        windows: of each text, from its start; None for all that fit.
        head: gather for the matrix that makes the logits, too: ``output.weight``, or a tied ``token_embd.weight``.
            llama-imatrix leaves it out; in small models it is a fifth of the weights, and rounded without importance it
            loses twice as much.
        n_threads: 0 for all cores.
        n_gpu_layers: layers that llama.cpp may put on a GPU.
    """

    window_tokens: int = 512
    windows: int | None = None
    head: bool = True
    n_threads: int = 0
    n_gpu_layers: int = 0

    def __post_init__(self) -> None:
        if self.window_tokens < 2:
            raise InvalidRequest(f"a window needs at least 2 tokens, not {self.window_tokens}")
        if self.windows is not None and self.windows < 1:
            raise InvalidRequest(f"at least 1 window is needed, not {self.windows}")
        if self.n_threads < 0:
            raise InvalidRequest(f"n_threads must be at least 0, not {self.n_threads}")


def gather_importance(
    model_file: ModelFile,
    calibration: Sequence[CalibrationFile],
    settings: ImportanceSettings | None = None,
    on_progress: Progress = lambda _done, _total, _what: None,
) -> ImportanceMatrix:
    """Run texts through a model and sum the squares of all weights' inputs.

    Raises:
        InvalidRequest: no text, one that cannot be used or is too short, or windows longer than the model allows.
        EngineFailed: llama.cpp cannot load the model, or the model computes NaN or infinity.
    """
    settings = settings or ImportanceSettings()
    if not calibration:
        raise InvalidRequest("an importance matrix is gathered on text: name a calibration file")
    texts = read_texts(calibration)
    with Model.load(model_file.paths, n_gpu_layers=settings.n_gpu_layers) as model:
        if settings.window_tokens > model.trained_context > 0:
            raise InvalidRequest(
                f"windows of {settings.window_tokens} tokens are longer than the {model.trained_context} tokens "
                "the model was trained for"
            )
        windows = [window for text in texts for window in consecutive_windows(text, model.vocabulary, settings)]
        count = named(on_progress, len(windows), "reading text")
        spec, n_threads = model_file.spec, settings.n_threads
        sums = sum_columns(model, spec, windows, head=settings.head, n_threads=n_threads, on_window=count)
    return ImportanceMatrix(
        sums,
        tuple(os.fsencode(text.path).decode(errors="replace") for text in texts),
        len(windows),
        settings.window_tokens,
        model_file.spec.identity.structure,
    )


def consecutive_windows(text: TaskText, vocabulary: Vocabulary, settings: ImportanceSettings) -> list[Window]:
    """Windows from the start of a text, as llama-imatrix cuts them; what does not fill a window is left out.

    Raises:
        InvalidRequest: the text does not fill the windows asked for; says how many tokens are needed and there.
    """
    tokens = vocabulary.tokenize(text.text, parse_special=False)
    n, wanted = settings.window_tokens, settings.windows or 1
    if len(tokens) < n * wanted:
        raise InvalidRequest(
            f"calibration file {text.path} is too short: {wanted} windows of {n} tokens need {n * wanted} tokens, "
            f"it has {len(tokens)}"
        )
    last = n * (settings.windows or len(tokens) // n)
    first = vocabulary.start
    return [(*first, *tokens[start + len(first) : start + n]) for start in range(0, last, n)]


def sum_columns(
    model: Model,
    spec: ModelSpec,
    windows: Sequence[Window],
    *,
    head: bool = False,
    n_threads: int = 0,
    on_window: Count = ignore,
) -> dict[str, ColumnSums]:
    """Sums of the inputs of every weight of the layers, over all windows.

    Args:
        spec: of the model: what it names is a weight, and what else is multiplied was computed.
        head: of the matrix behind the logits too; without it the pass ends after the last layer.

    Raises:
        EngineFailed: a state is NaN or infinite, or llama.cpp shows no products.
    """
    sums = _Sums()
    longest = max(map(len, windows))
    n_pass = min(PASS_TOKENS, longest)
    options = ContextOptions(longest, n_batch=n_pass, n_outputs=n_pass, n_threads=n_threads)
    last_node = "" if head else f"l_out-{model.n_layers - 1}"
    weights = frozenset(t.name for t in spec.tensors if head or t.layer is not None)
    observer = ProductObserver(weights.__contains__, sums.add, last_node)
    with Context(model, options, products=observer) as context:
        for done, window in enumerate(windows, 1):
            context.forget()
            for first in range(0, len(window), n_pass):  # the last layer computes only tokens that are put out
                part = window[first : first + n_pass]
                context.decode(part, first, n_outputs=len(part))
            on_window(done)
    return sums.finished()


class _Sums:
    """Running sums, in float64: windows differ by orders of magnitude."""

    def __init__(self) -> None:
        self._squares: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}

    def add(self, product: Product) -> None:
        n_counts = 1 if product.experts is None else product.n_matrices
        squares = self._squares.setdefault(
            product.weight, np.zeros((product.n_matrices, product.inputs.shape[-1]), np.float64)
        )
        counts = self._counts.setdefault(product.weight, np.zeros(n_counts, np.int64))
        if product.experts is None:
            squares += np.einsum("tsd,tsd->sd", product.inputs, product.inputs)
            counts += len(product.inputs)
        else:
            add_experts(squares, counts, product.inputs, product.experts)

    def finished(self) -> dict[str, ColumnSums]:
        if not self._squares:
            raise EngineFailed("llama.cpp shows no products of this model's layers; no importance can be gathered")
        for name, squares in self._squares.items():
            if not np.isfinite(squares).all():
                raise EngineFailed(f"the model computes NaN or infinity in the inputs of {name}")
        return {n: ColumnSums(s.astype(np.float32), self._counts[n]) for n, s in self._squares.items()}


def add_experts(
    squares: NDArray[np.float64],
    counts: NDArray[np.int64],
    inputs: NDArray[np.float32],
    experts: NDArray[np.int32],
) -> None:
    """Add each token's squares to the experts chosen for it.

    Args:
        squares: shape (experts, row length); changed.
        counts: shape (experts,); changed.
        inputs: shape (tokens, slots, row length); slot ``i mod slots`` is what the i-th chosen expert sees.
        experts: shape (tokens, chosen).
    """
    counts += np.bincount(experts.ravel(), minlength=len(counts))
    for i in range(experts.shape[1]):
        seen = inputs[:, i % inputs.shape[1]]
        for expert in np.unique(experts[:, i]):
            rows = seen[experts[:, i] == expert]
            squares[expert] += np.einsum("td,td->d", rows, rows)
