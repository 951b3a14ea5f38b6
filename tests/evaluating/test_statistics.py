from __future__ import annotations

import math

import numpy as np
import pytest

from lamella.evaluating.statistics import Estimate, exponential, mean, ratio


def test_the_standard_error_of_a_mean() -> None:
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.standard_error) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))


def test_a_single_sample_has_no_standard_error() -> None:
    assert mean([3.0]) == Estimate(3.0, None)
    assert str(mean([3.0])) == "3.0000"


def test_groups_of_one_size_are_samples_of_their_mean() -> None:
    amounts = [2.0, 4.0, 9.0]
    expected = mean([a / 2 for a in amounts])
    found = ratio(amounts, [2.0] * 3)
    assert (found.value, found.standard_error) == pytest.approx((expected.value, expected.standard_error))


def test_the_error_of_a_ratio_is_its_spread_over_samples() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        sizes = random.integers(1, 9, 200).astype(float)
        found.append(ratio((sizes * random.normal(2, 0.5, 200)).tolist(), sizes.tolist()))
    spread = float(np.std([f.value for f in found]))
    assert np.mean([f.standard_error or 0.0 for f in found]) == pytest.approx(spread, rel=0.05)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    found = exponential(Estimate(2.0, 0.1))
    assert (found.value, found.standard_error) == pytest.approx((math.exp(2), 0.1 * math.exp(2)))
