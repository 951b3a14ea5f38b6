"""Cosine distance, and following a pass from layer to layer."""

from __future__ import annotations

import numpy as np
import pytest

from lamella.core.errors import EngineFailed
from lamella.measuring.activations import LayerWatch, cosine_distance

RANDOM = np.random.default_rng(0)


def states(n: int = 3, width: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RANDOM.standard_normal((n, width), np.float32)


def test_identical_states_have_no_distance() -> None:
    same = states(50, 576) * np.float32(1e3)
    assert np.abs(cosine_distance(same, same)).max() < 1e-12


def test_length_does_not_matter_and_direction_does() -> None:
    a = states()
    assert cosine_distance(a, np.float32(7) * a) == pytest.approx(np.zeros(3), abs=1e-6)
    assert cosine_distance(a, -a) == pytest.approx(np.full(3, 2.0))
    right_angle = cosine_distance(np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32))
    assert right_angle == pytest.approx([1])


def test_zero_states() -> None:
    zero, one = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert cosine_distance(zero, zero).tolist() == [0]
    assert cosine_distance(zero, one).tolist() == [1]


def test_watch_compares_each_layer_with_the_one_before() -> None:
    watch = LayerWatch(2)
    inner, first, second = states(), states(), states()
    assert watch.observe("embd", states())  # replaced by the scaled input, as in Gemma
    assert watch.observe("inp_scaled", inner)
    assert watch.observe("l_out-0", first)
    assert not watch.observe("l_out-1", second)  # nothing more is wanted
    watch.check_complete()
    expected = [cosine_distance(inner, first).sum(), cosine_distance(first, second).sum()]
    assert watch.cosine_sums == pytest.approx(expected)
    assert np.array_equal(np.stack(watch.last_states), np.stack([inner[-1], first[-1], second[-1]]))


def test_long_samples_add_up_over_passes() -> None:
    watch = LayerWatch(1)
    inner, outer = states(6), states(6)
    for part in (slice(0, 4), slice(4, 6)):
        watch.start_pass()
        watch.observe("embd", inner[part])
        watch.observe("l_out-0", outer[part])
    assert watch.cosine_sums == pytest.approx([cosine_distance(inner, outer).sum()])
    assert np.array_equal(watch.last_states[-1], outer[-1])


@pytest.mark.parametrize("name", ["embd", "inp_scaled", "l_out-0", "l_out-31"])
def test_watch_wants_states_between_layers(name: str) -> None:
    assert LayerWatch(2).wants(name)


@pytest.mark.parametrize("name", ["attn_out-0", "result_norm", "result_output", "l_out-0 (view)", "inp_pos", "norm-0"])
def test_watch_wants_nothing_else(name: str) -> None:
    assert not LayerWatch(2).wants(name)


def test_layers_that_cannot_be_followed_are_refused() -> None:
    watch = LayerWatch(2)
    watch.observe("embd", states(4))
    with pytest.raises(EngineFailed, match="cannot be compared"):
        watch.observe("l_out-0", states(1))
    with pytest.raises(EngineFailed, match="cannot be compared"):
        watch.observe("l_out-1", states(4))


def test_pass_without_layers_is_refused() -> None:
    with pytest.raises(EngineFailed, match="0 of 2 layers"):
        LayerWatch(2).check_complete()


def test_states_that_are_not_finite_are_refused() -> None:
    broken = states()
    broken[1, 2] = np.nan
    with pytest.raises(EngineFailed, match="NaN or infinity at embd"):
        LayerWatch(2).observe("embd", broken)
