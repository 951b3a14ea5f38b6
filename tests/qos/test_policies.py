"""Policies as pure functions: never infeasible, no oscillation, monotone; reasons in words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.constraints import CALM_SECONDS, RESERVE_BYTES
from lamella.qos.policies.decision import LASTING_SECONDS, LONGEST_LASTING_SECONDS, PolicyState
from lamella.qos.policies.forecast import forecast
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.predictive import Predictive, caution_of, most_loss
from lamella.qos.policies.sample import ClassSample, Sample, Stream
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.policies.slack import losses, step_seconds
from lamella.qos.policies.threshold import Threshold
from tests.qos.loads import GIB, load, setting_for, settle
from tests.qos.profiles import MEBI, profile, variant

classes = st.builds(
    ClassSample,
    st.floats(0.0, 6.0),
    st.floats(1, 800),
    st.floats(800, 1500),
    st.floats(1, 300),
    st.none() | st.floats(0.01, 10),
    st.none() | st.floats(0.005, 1),
    st.floats(0.8, 1),
    st.lists(st.integers(1, 300), max_size=8).map(sorted),
)
streams = st.lists(
    st.builds(Stream, st.sampled_from(["interactive", "batch"]), st.integers(1, 300), st.floats(0, 10)), max_size=8
)
samples = st.builds(
    Sample,
    time=st.floats(100, 200),
    classes=st.dictionaries(st.sampled_from(["interactive", "batch"]), classes, max_size=2),
    n_running=st.integers(0, 8),
    n_waiting=st.integers(0, 20),
    waiting_tokens=st.integers(0, 5000),
    slowdown=st.floats(1, 4),
    available_bytes=st.none() | st.integers(0, GIB),
    memory_stall=st.none() | st.floats(0, 0.2),
    is_own_stall=st.booleans(),
    on_battery=st.booleans(),
    streams=streams,
)
wishes = st.builds(
    ClassObjectives,
    st.none() | st.floats(0.05, 10),
    st.none() | st.floats(0.005, 0.5),
    st.none() | st.floats(0, 0.2),
    st.integers(0, 2),
)
objectives = st.builds(
    Objectives,
    st.fixed_dictionaries({"interactive": wishes, "batch": wishes}),
    st.none() | st.integers(200 * MEBI, 600 * MEBI),
    st.none() | st.floats(6, 60),
)
states = st.builds(
    PolicyState,
    st.sampled_from(["v0", "v1", "v2", "v3"]),
    st.floats(0, 100),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 100),
    st.floats(1, 64),
    st.none() | st.floats(0, 100),
)


def feasible_in(setting: Setting, state: PolicyState, sample: Sample) -> list[str]:
    """Variants that keep the whole promise, said again without the policies' own words for it."""
    fitting = [r for r in setting.rungs if may_run(r, setting, state, sample)]
    lost = losses(fitting, setting, sample) if fitting else {}
    return [r.name for r in fitting if is_in_time(r, setting, sample, lost[r.name])]


def may_run(rung: Rung, setting: Setting, state: PolicyState, sample: Sample) -> bool:
    """Memory, power and floors."""
    wanted, current = setting.objectives, setting.rung(state.variant)
    if wanted.memory_bytes is not None and rung.memory_bytes > wanted.memory_bytes:
        return False
    if sample.available_bytes is not None:
        if rung.memory_bytes - current.memory_bytes > sample.available_bytes - RESERVE_BYTES:
            return False
        if sample.available_bytes < RESERVE_BYTES and rung.memory_bytes >= current.memory_bytes:
            return False
    has_plenty = sample.available_bytes is not None and sample.available_bytes > current.memory_bytes
    may_be_of_others = has_plenty and not sample.is_own_stall
    if (sample.memory_stall or 0) > 0.05 and not may_be_of_others and rung.memory_bytes >= current.memory_bytes:
        return False
    was_short = state.pressed_at is not None and sample.time - state.pressed_at < CALM_SECONDS
    if was_short and rung.memory_bytes > current.memory_bytes:
        return False
    watts = forecast(rung, setting, sample).watts
    if wanted.power_watts is not None and (watts is None or watts > wanted.power_watts):
        return False
    floors = [f for n in sample.classes if (f := wanted.classes[n].most_kl) is not None]
    return not floors or (rung.kl is not None and rung.kl <= min(floors))


def is_in_time(rung: Rung, setting: Setting, sample: Sample, lost: Mapping[str, float]) -> bool:
    """Latencies, where so large a share of each class's streams would break its promise."""
    found, wanted = forecast(rung, setting, sample, caution=caution_of(sample)), setting.objectives.classes
    first = all(wanted[name].is_met_by(found.ttft_seconds[name], 0.0) for name in sample.classes)
    return first and all(lost.get(n, 0.0) <= most_loss(seen.kept_share) for n, seen in sample.classes.items())


@settings(deadline=None)
@given(states, samples, objectives)
def test_predictive_never_runs_an_infeasible_variant_when_there_is_a_feasible_one(
    state: PolicyState, sample: Sample, wanted: Objectives
) -> None:
    setting = setting_for(wanted)
    decision = Predictive(setting).decide(state, sample)
    feasible = feasible_in(setting, state, sample)
    assert not feasible or decision.variant in feasible
    assert decision.reason
    assert decision.state.variant == decision.variant


@settings(deadline=None)
@given(states, samples, objectives)
def test_threshold_keeps_memory_and_floors_when_it_can(state: PolicyState, sample: Sample, wanted: Objectives) -> None:
    bare = Objectives({n: ClassObjectives(most_kl=c.most_kl) for n, c in wanted.classes.items()}, wanted.memory_bytes)
    setting = setting_for(bare)
    decision = Threshold(setting_for(replace(wanted, power_watts=None))).decide(state, sample)
    feasible = feasible_in(setting, state, sample)
    assert not feasible or decision.variant in feasible
    assert decision.reason


def n_turns(variants: list[str]) -> int:
    """How often the direction along the ladder changes."""
    ranks = [int(v[1:]) for v in variants]
    moves = [b - a for a, b in itertools.pairwise(ranks) if a != b]
    return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves))


@settings(deadline=None, max_examples=50)
@given(states, samples, objectives)
def test_nothing_oscillates_under_a_constant_load(state: PolicyState, sample: Sample, wanted: Objectives) -> None:
    calm = replace(sample, available_bytes=None, memory_stall=None)
    for policy in (Predictive(setting_for(wanted)), Threshold(setting_for(wanted))):
        variants = settle(policy, state, calm)
        assert n_turns(variants) <= 1
        assert len(set(variants[420:])) == 1  # at rest after three rungs of the longest hold


@settings(deadline=None)
@given(states, samples, wishes, st.floats(1, 5), st.floats(1, 5))
def test_predictive_is_monotone_in_the_objective(
    state: PolicyState, sample: Sample, wish: ClassObjectives, slower: float, later: float
) -> None:
    """Who promises less gets no worse answers, as long as the more could be kept: what cannot is given up."""
    relaxed = replace(
        wish,
        ttft_seconds=None if wish.ttft_seconds is None else wish.ttft_seconds * later,
        tpot_seconds=None if wish.tpot_seconds is None else wish.tpot_seconds * slower,
    )
    bare = setting_for(Objectives({}))
    alone = step_seconds(bare.rungs[-1], bare, replace(sample, n_running=1, n_waiting=0))
    if wish.tpot_seconds is not None:
        assume(alone < wish.tpot_seconds)
        kept = [s for s in sample.streams if s.seconds <= wish.tpot_seconds * (s.n_written - 1)]
        sample = replace(sample, streams=kept)
    ranks = []
    for promised in (wish, relaxed):
        setting = setting_for(Objectives({"interactive": promised, "batch": ClassObjectives()}))
        ranks.append(setting.rung(Predictive(setting).decide(state, sample).variant).rank)
    assert ranks[1] <= ranks[0]


@settings(deadline=None)
@given(states, samples, st.integers(200 * MEBI, 600 * MEBI), st.integers(0, 300 * MEBI))
def test_predictive_is_monotone_in_memory(state: PolicyState, sample: Sample, ceiling: int, more: int) -> None:
    ranks = []
    for memory in (ceiling, ceiling + more):
        setting = setting_for(Objectives({}, memory))
        ranks.append(setting.rung(Predictive(setting).decide(state, sample).variant).rank)
    assert ranks[1] <= ranks[0]


def test_going_up_in_vain_makes_the_next_time_up_come_later() -> None:
    state = PolicyState("v1")
    holds = []
    for i in range(8):
        state = state.goes_up("v0", 100.0 * i).goes_down("v1", 100.0 * i + 1)
        holds.append(state.lasting_seconds)
    assert holds[:3] == [2 * LASTING_SECONDS, 4 * LASTING_SECONDS, 8 * LASTING_SECONDS]
    assert holds[-1] == LONGEST_LASTING_SECONDS
    assert state.goes_down("v2", 1e6).lasting_seconds == LASTING_SECONDS


def test_threshold_follows_what_was_measured() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(tpot_seconds=0.1)}))
    policy = Threshold(setting)
    down = policy.decide(PolicyState("v1"), Sample(50.0, {"interactive": load(1.0, measured=0.12)}))
    assert (down.variant, "120 of 100 ms" in down.reason) == ("v2", True)
    stays = policy.decide(down.state, Sample(50.5, {"interactive": load(1.0, measured=0.12)}))
    assert stays.variant == "v2"  # what is measured is of before
    near = policy.decide(down.state, Sample(90.0, {"interactive": load(1.0, measured=0.09)}))
    assert near.variant == "v2"
    assert settle(policy, down.state, Sample(90.0, {"interactive": load(1.0, measured=0.03)}), 30)[-1] == "v0"


def test_rungs_are_ordered_by_divergence_or_where_that_is_unknown_by_bits() -> None:
    known = Setting.of(profile(variant("b", kl=0.2), variant("a", kl=0.1)), Objectives())
    assert [r.name for r in known.rungs] == ["a", "b"]
    one_unknown = profile(replace(variant("b", kl=None), bits_per_weight=9.0), variant("a", kl=0.1))
    assert [r.name for r in Setting.of(one_unknown, Objectives()).rungs] == ["b", "a"]
    with pytest.raises(InvalidRequest, match="lamella profile"):
        Setting.of(profile(), Objectives())


def test_policies_have_names() -> None:
    setting = setting_for(Objectives())
    assert [named_policy(n, setting).name for n in ("static", "static:v2", "threshold", "predictive")] == [
        "static:v0", "static:v2", "threshold", "predictive",
    ]  # fmt: skip
    with pytest.raises(InvalidRequest, match="predictive"):
        named_policy("clever", setting)
    with pytest.raises(UnknownVariant, match="v0, v1"):
        named_policy("static:v9", setting)
