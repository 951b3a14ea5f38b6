"""What changes a measurement, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lamella.core.errors import InvalidRequest
from lamella.core.precision import GGML_TYPES, SCHEMES, Scheme

Level = Literal["tensor", "layer"]
LEVELS: tuple[Level, ...] = get_args(Level)
PROBE = "Q4_0"


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """What changes a measurement, and how it is computed.

    Attributes:
        k: size of the token sets of ``jaccard``.
        samples: windows of each task; None for the metric's default.
        window_tokens: tokens in a window; None for the metric's default.
        seed: where windows lie, or what the model writes.
        scheme: how ``weight-difference`` rounds.
        level: ``sensitivity`` of each tensor, or of each layer as a whole.
        probe: ggml type that ``sensitivity`` rounds to.
        n_threads: 0 for all cores.
        n_gpu_layers: layers that llama.cpp may put on a GPU; ``sensitivity`` runs on the CPU.
    """

    k: int = 20
    samples: int | None = None
    window_tokens: int | None = None
    seed: int = 0
    scheme: Scheme = "block"
    level: Level = "tensor"
    probe: str = PROBE
    n_threads: int = 0
    n_gpu_layers: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidRequest(f"k must be at least 1, not {self.k}")
        if self.samples is not None and self.samples < 2:
            raise InvalidRequest(f"a standard error needs at least 2 samples, not {self.samples}")
        if self.window_tokens is not None and self.window_tokens < 2:
            raise InvalidRequest(f"a window needs at least 2 tokens, not {self.window_tokens}")
        if self.scheme not in SCHEMES:
            raise InvalidRequest(f"unknown scheme '{self.scheme}'; known: {', '.join(SCHEMES)}")
        if self.level not in LEVELS:
            raise InvalidRequest(f"unknown level '{self.level}'; known: {', '.join(LEVELS)}")
        if self.probe.upper() not in GGML_TYPES:
            raise InvalidRequest(f"unknown ggml type '{self.probe}' for probes; the default is {PROBE}")
        if self.n_threads < 0:
            raise InvalidRequest(f"n_threads must be at least 0, not {self.n_threads}")
