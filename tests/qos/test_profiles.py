"""Profiles: documents that are refused when they are wrong, a model that says how far off it is, and refreshing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ArtifactError, UnknownVariant
from lamella.qos.profiles.curves import Curve, slope_through_zero
from lamella.qos.profiles.documents import PromptPoint, StepPoint, from_json, to_json
from lamella.qos.profiles.refresh import MOST_SEEN, ObservedPrompt, ObservedStep, refreshed
from lamella.qos.profiles.speed import SpeedModel
from tests.qos.profiles import ladder, true_chunk, true_step, variant

N_BATCH = 512


def test_a_profile_survives_its_document() -> None:
    profile = ladder(3, joules=0.5)
    data = to_json(profile)
    assert from_json(data, "p.json") == profile
    assert to_json(from_json(data, "p.json")) == data


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"lamella.profile"', b'"lamella.plan"', "not a lamella.profile"),
        (b'"format_version": 1', b'"format_version": 9', "reads 1 to"),
        (b'"n_batch": 512', b'"n_batch": "many"', "n_batch"),
        (b'"n_batch": 512', b'"n_batch": 0', "no engine of .*n_batch=0"),
        (b'"n_tokens": 16', b'"n_tokens": 0', "v0.*without tokens"),
        (b"{", b"[", "not JSON"),
    ],
)
def test_wrong_documents_are_refused(old: bytes, new: bytes, match: str) -> None:
    data = to_json(ladder(1))
    assert old in data
    with pytest.raises(ArtifactError, match=match):
        from_json(data.replace(old, new, 1), "p.json")


def test_a_variant_without_points_is_refused() -> None:
    profile = ladder(1)
    broken = replace(profile, variants=(replace(profile.variants[0], steps=()),))
    with pytest.raises(ArtifactError, match="no measured step"):
        from_json(to_json(broken), "p.json")


@pytest.mark.parametrize("field", ["n_sequences", "n_prompt", "n_steps"])
def test_a_mixed_point_of_nothing_is_refused(field: str) -> None:
    """The model divides by them."""
    profile = ladder(1)
    first = profile.variants[0]
    mixed = replace(first.mixed[0], **{field: 0})
    broken = replace(profile, variants=(replace(first, mixed=(mixed,)),))
    with pytest.raises(ArtifactError, match="without tokens"):
        from_json(to_json(broken), "p.json")


def test_an_unknown_variant_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownVariant, match="v0, v1"):
        ladder(2).variant("v9")


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.1, 100)), min_size=1, unique_by=lambda p: p[0]))
def test_a_curve_goes_through_its_points(points: list[tuple[int, float]]) -> None:
    curve = Curve(points)
    assert all(curve.at(x) == pytest.approx(y) for x, y in points)


def test_a_curve_is_level_before_and_goes_on_after() -> None:
    curve = Curve([(2, 1.0), (4, 3.0)])
    assert [curve.at(x) for x in (1, 2, 3, 4, 6)] == [1.0, 1.0, 2.0, 3.0, 5.0]
    assert Curve([(2, 3.0), (4, 1.0)]).at(8) == 1.0  # measured noise must not go on below nothing


def test_a_line_through_points_of_a_line_is_not_off_and_through_others_is() -> None:
    assert Curve([(1, 1.0), (2, 2.0), (4, 4.0)]).left_out_errors() == pytest.approx([0.0])
    assert Curve([(1, 1.0), (2, 4.0), (3, 3.0)]).left_out_errors() == pytest.approx([-0.5])


def test_a_slope_is_never_below_nothing() -> None:
    assert slope_through_zero([(1, 2), (2, 4)]) == pytest.approx(2)
    assert slope_through_zero([(1, -2)]) == 0
    assert slope_through_zero([]) == 0


@pytest.mark.parametrize(("n", "depth"), [(1, 64), (3, 200), (8, 2000), (6, 0)])
def test_writing_between_the_points(n: int, depth: float) -> None:
    assert SpeedModel(variant("v"), N_BATCH).writing(n, depth) == pytest.approx(true_step(n, depth))


def test_a_long_prompt_looks_back_at_itself() -> None:
    long = PromptPoint(2048, sum(true_chunk(512, start) for start in range(0, 2048, 512)))
    measured = replace(variant("v"), prompt=(*variant("v").prompt, long))
    model = SpeedModel(measured, N_BATCH)
    assert model.prompt(2048) == pytest.approx(long.seconds)
    assert model.prompt(1100) == pytest.approx(true_chunk(512, 0) + true_chunk(512, 512) + true_chunk(76, 1024))
    assert model.reading(64, 1000) == pytest.approx(true_chunk(64, 1000))


def test_a_mixed_step_reads_the_weights_once() -> None:
    model = SpeedModel(variant("v"), N_BATCH)
    assert model.mixed(4, 64, 64) == pytest.approx(true_step(4, 64) + true_chunk(64, 0) - 0.018)
    assert model.mixed(0, 0, 64) == pytest.approx(true_chunk(64, 0))
    assert model.mixed(4, 64, 0) == pytest.approx(true_step(4, 64))


def test_the_model_says_how_far_off_it_is() -> None:
    good = SpeedModel(variant("v"), N_BATCH).error
    assert good.n_points == 4
    assert good.largest < 1e-6
    bent = replace(variant("v"), steps=(*variant("v").steps[:1], StepPoint(2, 64, 0.5), *variant("v").steps[2:]))
    assert SpeedModel(bent, N_BATCH).error.largest > 0.5


def test_what_is_observed_again_and_again_becomes_the_profile() -> None:
    profile = variant("v")
    for _ in range(500):
        profile = refreshed(profile, ObservedStep(3, 64, 2 * true_step(3, 64)), N_BATCH)
        profile = refreshed(profile, ObservedPrompt(100, 0.5 * true_chunk(100, 0)), N_BATCH)
    model = SpeedModel(profile, N_BATCH)
    assert model.writing(3, 64) == pytest.approx(2 * true_step(3, 64), rel=0.02)
    assert model.prompt(100) == pytest.approx(0.5 * true_chunk(100, 0), rel=0.02)
    assert model.writing(8, 64) == pytest.approx(true_step(8, 64))  # nothing was seen of that
    assert max(p.n_seen for p in profile.steps) <= MOST_SEEN


def test_one_observation_is_a_mean_with_what_was_measured() -> None:
    profile = refreshed(variant("v"), ObservedStep(2, 64, 3 * true_step(2, 64)), N_BATCH)
    assert SpeedModel(profile, N_BATCH).writing(2, 64) == pytest.approx(2 * true_step(2, 64))


def test_a_hiccup_moves_little_and_nothing_moves_nothing() -> None:
    profile = refreshed(variant("v"), ObservedStep(1, 64, 1000.0), N_BATCH)
    assert SpeedModel(profile, N_BATCH).writing(1, 64) == pytest.approx(2.5 * true_step(1, 64))
    assert refreshed(profile, ObservedPrompt(5, 0.0), N_BATCH) is profile


@given(st.integers(1, 20), st.floats(0, 5000), st.integers(1, 3000))
def test_more_work_never_takes_less_time(n: int, depth: float, m: int) -> None:
    model = SpeedModel(variant("v"), N_BATCH)
    assert model.writing(n + 1, depth) >= model.writing(n, depth) > 0
    assert model.prompt(m + 1) >= model.prompt(m) > 0
    assert model.mixed(n, depth, m % 512 + 1) >= model.writing(n, depth)
