"""Means and how far to trust them.

A standard error is the spread that the figure would show over other samples of the same size, taken as independent.
Neighbouring tokens of a text are not quite independent, so the errors of texts are a little too small (llama.cpp's are,
in the same way); differences between variants on the same samples are far surer than the figures themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error; None where there was a single sample."""

    value: float
    standard_error: float | None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.4f}")


def mean(values: NDArray[np.float64] | Sequence[float]) -> Estimate:
    """The mean of at least one sample."""
    samples = np.asarray(values, np.float64)
    error = float(samples.std(ddof=1)) / math.sqrt(len(samples)) if len(samples) > 1 else None
    return Estimate(float(samples.mean()), error)


def ratio(amounts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """``sum(amounts) / sum(sizes)`` over independent groups of unequal size, its error by linearisation.

    Cochran, *Sampling Techniques*, 2.11: the residuals ``amount - ratio * size`` of the groups carry the error.
    """
    a, s = np.asarray(amounts, np.float64), np.asarray(sizes, np.float64)
    value = float(a.sum() / s.sum())
    if len(a) < 2:
        return Estimate(value, None)
    residuals = a - value * s
    spread = math.sqrt(float(residuals @ residuals) * len(a) / (len(a) - 1))
    return Estimate(value, spread / float(s.sum()))


def exponential(loss: Estimate) -> Estimate:
    """Perplexity of a mean loss; the error to first order, as llama-perplexity gives it."""
    value = math.exp(loss.value) if loss.value < 700 else math.inf
    return Estimate(value, None if loss.standard_error is None else value * loss.standard_error)
