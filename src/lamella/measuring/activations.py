"""Hidden states between layers, read while llama.cpp computes them.

The evaluation callback shows ``l_out-N``, the output of layer N, which is the input of layer N + 1; the input of layer
0 is the embedding, scaled or normalised where the architecture does that.  The last layer computes only tokens whose
logits are asked for, so all are asked for, and the pass ends after it: the head is never computed.

Cosines are taken on the fly and only the last token's states are kept, so memory is samples x layers x width floats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.measuring.calibration import Window
from lamella.measuring.progress import Count, ignore

PASS_TOKENS = 128  # tokens in one pass; bounds the logits buffer that llama.cpp reserves (vocabulary x this)

# what llama.cpp's graphs call the input of layer 0, in the order in which a graph may have several of them
_INPUTS = frozenset(
    ("embd", "inp_embd", "inp_scaled", "inp_embd_scaled", "inpL", "inp_norm", "embd_norm", "embedding_output")
)
_OUTPUT = re.compile(r"l_out-(\d+)")


@dataclass(frozen=True, slots=True)
class Activations:
    """What one task's samples left behind.

    Attributes:
        cosine: 1 - cos(in, out), mean over a sample's tokens; shape (samples, layers).
        last_states: hidden state of each sample's last token, before layer 0 and after every layer; shape (samples,
            layers + 1, width).
    """

    cosine: NDArray[np.float64]
    last_states: NDArray[np.float32]


def read_activations(
    model: Model,
    samples: Sequence[Window],
    *,
    n_threads: int = 0,
    on_sample: Count = ignore,
) -> Activations:
    """Run every sample through the layers once.

    Raises:
        EngineFailed: llama.cpp does not show the layers of this architecture, or a state is NaN or infinite.
    """
    watch = LayerWatch(model.n_layers)
    longest = max(map(len, samples))
    n_pass = min(PASS_TOKENS, longest)
    options = ContextOptions(longest, n_batch=n_pass, n_outputs=n_pass, n_threads=n_threads)
    cosines, states = [], []
    with Context(model, options, wants=watch.wants, observe=watch.observe) as context:
        for done, sample in enumerate(samples, 1):
            context.forget()
            watch.start_sample()
            for first in range(0, len(sample), n_pass):
                part = sample[first : first + n_pass]
                watch.start_pass()
                context.decode(part, first, n_outputs=len(part))
                watch.check_complete()
            cosines.append(watch.cosine_sums / len(sample))
            states.append(np.stack(watch.last_states))
            on_sample(done)
    return Activations(np.stack(cosines), np.stack(states))


def cosine_distance(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cos of each pair of rows, 0 for equal ones; a zero row differs by 1 from all but another zero row."""
    products = np.einsum("td,td->t", before, after, dtype=np.float64)
    norms = _norms(before) * _norms(after)
    both_zero = ~before.any(axis=1) & ~after.any(axis=1)
    cosines: NDArray[np.float64] = np.where(both_zero, 1.0, 0.0)
    np.divide(products, norms, out=cosines, where=norms > 0)
    return 1 - np.clip(cosines, -1, 1)


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("td,td->t", rows, rows, dtype=np.float64)
    return np.sqrt(squares)


class LayerWatch:
    """Follows the passes of one sample from layer to layer.

    Attributes:
        cosine_sums: of each layer, over the sample's tokens so far.
        last_states: of the last token so far, before layer 0 and after each layer.
    """

    def __init__(self, n_layers: int) -> None:
        self._n_layers = n_layers
        self.start_sample()

    def start_sample(self) -> None:
        self.cosine_sums = np.zeros(self._n_layers)
        self.start_pass()

    def start_pass(self) -> None:
        self.last_states: list[NDArray[np.float32]] = []
        self._before: NDArray[np.float32] | None = None

    def wants(self, name: str) -> bool:
        return name in _INPUTS or _OUTPUT.fullmatch(name) is not None

    def observe(self, name: str, values: NDArray[np.float32]) -> bool:
        """Take in the values of a node; False after the last layer: what follows is not needed."""
        if not np.isfinite(values).all():
            raise EngineFailed(f"the model computes NaN or infinity at {name}")
        match = _OUTPUT.fullmatch(name)
        if match is None:
            self.last_states = [values[-1]]
        else:
            self._take_output(int(match.group(1)), values)
        self._before = values
        return len(self.last_states) <= self._n_layers

    def _take_output(self, layer: int, values: NDArray[np.float32]) -> None:
        before = self._before
        if before is None or before.shape != values.shape or layer != len(self.last_states) - 1:
            shape = None if before is None else before.shape
            raise EngineFailed(
                f"llama.cpp shows layer {layer} with states {values.shape} after {len(self.last_states) - 1} layers "
                f"with states {shape}; layers of such an architecture cannot be compared"
            )
        self.cosine_sums[layer] += cosine_distance(before, values).sum()
        self.last_states.append(values[-1])

    def check_complete(self) -> None:
        """Raises EngineFailed unless the pass showed every layer."""
        if len(self.last_states) != self._n_layers + 1:
            raise EngineFailed(
                f"llama.cpp shows the outputs of {max(0, len(self.last_states) - 1)} of {self._n_layers} layers; "
                "this architecture cannot be measured by its activations (try --metric outlier)"
            )
