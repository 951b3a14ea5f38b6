"""Means and standard errors."""

from __future__ import annotations

import numpy as np
import pytest

from lamella.core.artifacts import LayerScore
from lamella.measuring.scores import exact_scores, joint_scores, task_scores


def test_standard_error_is_that_of_the_mean_over_samples() -> None:
    values = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    first, second = task_scores(values)
    assert first.mean == pytest.approx(3)
    assert first.standard_error == pytest.approx(np.sqrt(7) / np.sqrt(3))  # variance (4 + 1 + 9) / 2
    assert second == LayerScore(1, 5.0, 0.0)


def test_joint_score_counts_every_task_the_same() -> None:
    per_task = {
        "many": task_scores(np.array([[1.0], [1.0], [1.0], [1.0]])),
        "few": task_scores(np.array([[2.0], [4.0]])),
    }
    (joint,) = joint_scores(per_task)
    assert joint.mean == pytest.approx(2)  # not (4 * 1 + 2 * 3) / 6
    assert joint.standard_error == pytest.approx(1 / 2)  # errors 0 and 1, of a mean of two


def test_joint_score_of_one_task_is_its_own() -> None:
    scores = task_scores(np.array([[0.1, 0.2], [0.4, 0.9]]))
    assert joint_scores({"only": scores}) == scores


def test_exact_scores_have_no_error() -> None:
    assert exact_scores([0.5, 0.25]) == (LayerScore(0, 0.5, 0.0), LayerScore(1, 0.25, 0.0))
