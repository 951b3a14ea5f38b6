"""From the values of samples to scores of layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lamella.core.artifacts import LayerScore


def task_scores(values: NDArray[np.float64]) -> tuple[LayerScore, ...]:
    """Mean over samples and its standard error, for values of shape (samples, layers), at least two samples."""
    means = values.mean(axis=0)
    errors = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return tuple(LayerScore(i, float(m), float(e)) for i, (m, e) in enumerate(zip(means, errors, strict=True)))


def joint_scores(per_task: Mapping[str, Sequence[LayerScore]]) -> tuple[LayerScore, ...]:
    """Mean over tasks, each counting the same however many samples it has.

    Tasks are fixed, not drawn from a population of tasks, so the error is that of a mean of independent means.
    """
    n_tasks = len(per_task)
    joint = []
    for scores in zip(*per_task.values(), strict=True):
        mean = math.fsum(s.mean for s in scores) / n_tasks
        error = math.sqrt(math.fsum(s.standard_error**2 for s in scores)) / n_tasks
        joint.append(LayerScore(scores[0].layer, mean, error))
    return tuple(joint)


def exact_scores(values: Iterable[float]) -> tuple[LayerScore, ...]:
    """Scores without sampling error."""
    return tuple(LayerScore(i, value) for i, value in enumerate(values))
