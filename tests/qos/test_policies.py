"""Policies as pure functions: never infeasible, no oscillation, monotone; memory at once; reasons in words."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.constraints import CALM_SECONDS, RESERVE_BYTES
from lamella.qos.policies.decision import HOLD_SECONDS, LONGEST_HOLD_SECONDS, Policy, PolicyState
from lamella.qos.policies.forecast import Z95, forecast
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.predictive import Predictive, caution_of, excess_of
from lamella.qos.policies.sample import ClassSample, Sample, slowdown_by_others
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.policies.threshold import Threshold
from tests.qos.profiles import MEBI, ladder, profile, variant

GIB = 1 << 30


def load(rate: float, *, prompt: float = 100.0, generated: float = 60.0, measured: float | None = None) -> ClassSample:
    return ClassSample(rate, prompt, 2 * prompt, generated, measured, measured)


classes = st.builds(
    ClassSample,
    st.floats(0.0, 6.0),
    st.floats(1, 800),
    st.floats(800, 1500),
    st.floats(1, 300),
    st.none() | st.floats(0.01, 10),
    st.none() | st.floats(0.005, 1),
    st.floats(0.8, 1),
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
    on_battery=st.booleans(),
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


def setting_for(wanted: Objectives) -> Setting:
    return Setting.of(ladder(4, joules=0.5), wanted)


def is_feasible(rung: Rung, setting: Setting, state: PolicyState, sample: Sample) -> bool:
    """The whole promise, said again without the policies' own words for it."""
    found, wanted = forecast(rung, setting, sample), setting.objectives
    current = setting.rung(state.variant)
    if wanted.memory_bytes is not None and rung.memory_bytes > wanted.memory_bytes:
        return False
    if sample.available_bytes is not None:
        if rung.memory_bytes - current.memory_bytes > sample.available_bytes - RESERVE_BYTES:
            return False
        if sample.available_bytes < RESERVE_BYTES and rung.memory_bytes >= current.memory_bytes:
            return False
    if (sample.memory_stall or 0) > 0.05 and rung.memory_bytes >= current.memory_bytes:
        return False
    was_short = state.pressed_at is not None and sample.time - state.pressed_at < CALM_SECONDS
    if was_short and rung.memory_bytes > current.memory_bytes:
        return False
    if wanted.power_watts is not None and (found.watts is None or found.watts > wanted.power_watts):
        return False
    for name in sample.classes:
        promised = wanted.classes[name]
        if promised.most_kl is not None and (rung.kl is None or rung.kl > promised.most_kl):
            return False
        if not promised.is_met_by(found.ttft_seconds[name], found.tpot_seconds):
            return False
    return True


@settings(deadline=None)
@given(states, samples, objectives)
def test_predictive_never_runs_an_infeasible_variant_when_there_is_a_feasible_one(
    state: PolicyState, sample: Sample, wanted: Objectives
) -> None:
    setting = setting_for(wanted)
    decision = Predictive(setting).decide(state, sample)
    feasible = [r.name for r in setting.rungs if is_feasible(r, setting, state, sample)]
    assert not feasible or decision.variant in feasible
    assert decision.reason
    assert decision.state.variant == decision.variant


@settings(deadline=None)
@given(states, samples, objectives)
def test_threshold_keeps_memory_and_floors_when_it_can(state: PolicyState, sample: Sample, wanted: Objectives) -> None:
    bare = Objectives({n: ClassObjectives(most_kl=c.most_kl) for n, c in wanted.classes.items()}, wanted.memory_bytes)
    setting = setting_for(bare)
    decision = Threshold(setting_for(replace(wanted, power_watts=None))).decide(state, sample)
    feasible = [r.name for r in setting.rungs if is_feasible(r, setting, state, sample)]
    assert not feasible or decision.variant in feasible
    assert decision.reason


def settle(policy: Policy, state: PolicyState, sample: Sample, n: int = 500) -> list[str]:
    """The variants of so many samples, half a second apart, that are alike."""
    variants = [state.variant]
    for i in range(n):
        state = policy.decide(state, replace(sample, time=sample.time + i / 2)).state
        variants.append(state.variant)
    return variants


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
    """Who promises less gets no worse answers."""
    relaxed = replace(
        wish,
        ttft_seconds=None if wish.ttft_seconds is None else wish.ttft_seconds * later,
        tpot_seconds=None if wish.tpot_seconds is None else wish.tpot_seconds * slower,
    )
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


def test_a_burst_goes_down_at_once_and_comes_back_after_a_while() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    policy, state = Predictive(setting), PolicyState("v0")
    quiet, burst = {"interactive": load(0.2)}, {"interactive": load(3.0)}
    down = policy.decide(state, Sample(10.0, burst))
    assert setting.rung(down.variant).rank > 0
    assert "time per token of interactive" in down.reason
    assert "45 ms are promised" in down.reason
    waiting = policy.decide(down.state, Sample(20.0, quiet))
    assert waiting.variant == down.variant
    up = policy.decide(waiting.state, Sample(20.0 + waiting.state.hold_seconds, quiet))
    assert up.variant == "v0"


def test_forecasts_are_the_more_cautious_the_more_promises_were_broken() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    cautions = [caution_of(Sample(0.0, {"interactive": replace(load(1.0), kept_share=k)})) for k in (1, 0.98, 0.9)]
    assert cautions == [0.0, pytest.approx(Z95 / 2), Z95]
    sample = Sample(10.0, {"interactive": load(1.0)})
    bold, careful = (forecast(setting.rungs[0], setting, sample, 1.0, c).tpot_seconds for c in (0.0, Z95))
    assert bold < careful


def test_a_better_variant_must_bear_more_than_the_load_and_the_running_one_only_the_load() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    policy, kinds = Predictive(setting), set()
    for rate in (i / 10 for i in range(1, 40)):
        sample = Sample(10.0, {"interactive": load(rate)})
        caution = caution_of(sample)
        found = [forecast(setting.rungs[0], setting, sample, g, caution) for g in (1, 1.2)]
        met = [not excess_of(one, setting, sample).worst for one in found]
        kinds.add(tuple(met))
        assert (settle(policy, PolicyState("v1"), sample)[-1] == "v0") == met[1]
        assert (settle(policy, PolicyState("v0"), sample)[-1] == "v0") == met[0]
    assert kinds == {(True, True), (True, False), (False, False)}


def test_nothing_better_is_tried_while_promises_were_broken_lately() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    for kept, expected in ((0.94, "v2"), (0.96, "v0")):
        quiet = Sample(10.0, {"interactive": replace(load(0.2), kept_share=kept)})
        assert settle(Predictive(setting), PolicyState("v2"), quiet)[-1] == expected


def test_memory_pressure_acts_at_once_and_nothing_larger_comes_back_soon() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}))
    for policy in (Predictive(setting), Threshold(setting)):
        for sample in (Sample(10.0, available_bytes=MEBI), Sample(10.0, memory_stall=0.3)):
            down = policy.decide(PolicyState("v0", since=9.9), sample)
            assert setting.rung(down.variant).memory_bytes < setting.rung("v0").memory_bytes
            assert "memory" in down.reason
            soon = settle(policy, down.state, Sample(11.0, available_bytes=GIB), n=int(CALM_SECONDS))
            assert soon[-1] == down.variant
            later = settle(policy, down.state, Sample(11.0 + CALM_SECONDS, available_bytes=GIB))
            assert later[-1] == "v0"


def test_memory_frees_as_much_as_is_missing() -> None:
    setting = setting_for(Objectives())
    squeezed = Sample(10.0, available_bytes=RESERVE_BYTES - 100 * MEBI)  # 100 MiB too little: two rungs of 70 MiB
    assert Predictive(setting).decide(PolicyState("v0"), squeezed).variant == "v2"
    assert Predictive(setting).decide(PolicyState("v3"), squeezed).variant == "v3"  # nothing smaller is left


def test_a_quality_floor_holds_only_while_its_class_has_requests() -> None:
    wanted = Objectives({"interactive": ClassObjectives(None, 0.03), "batch": ClassObjectives(most_kl=0.02)})
    setting = setting_for(wanted)
    busy = load(2.5)
    alone = Predictive(setting).decide(PolicyState("v0"), Sample(1.0, {"interactive": busy}))
    both = Predictive(setting).decide(PolicyState("v0"), Sample(1.0, {"interactive": busy, "batch": load(0.01)}))
    assert setting.rung(alone.variant).rank > 1
    assert both.variant == "v1"


def test_the_higher_priority_decides_where_not_everything_can_be_met() -> None:
    """``large`` reads prompts quickly and writes slowly, ``small`` the other way round."""
    reader, writer = variant("reader", kl=0.0), variant("writer", kl=0.0)
    reader = replace(reader, steps=tuple(replace(p, seconds=p.seconds * 3) for p in reader.steps))
    writer = replace(writer, prompt=tuple(replace(p, seconds=p.seconds * 3) for p in writer.prompt))
    sample = Sample(1.0, {"interactive": load(0.05, prompt=400.0), "batch": load(0.05, prompt=400.0)})
    chosen = []
    for first, second in ((1, 0), (0, 1)):
        wanted = {
            "interactive": ClassObjectives(ttft_seconds=1.7, priority=first),
            "batch": ClassObjectives(tpot_seconds=0.04, priority=second),
        }
        setting = Setting.of(profile(reader, writer), Objectives(wanted))
        chosen.append(Predictive(setting).decide(PolicyState("reader"), sample).variant)
    assert chosen == ["reader", "writer"]


def test_power_on_battery_has_a_ceiling_of_its_own() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}, power_watts=200, battery_watts=60))
    busy = {"interactive": load(2.0)}
    assert Predictive(setting).decide(PolicyState("v0"), Sample(1.0, busy)).variant == "v0"
    on_battery = Predictive(setting).decide(PolicyState("v0"), Sample(1.0, busy, on_battery=True))
    assert setting.rung(on_battery.variant).rank > 0


def test_going_up_in_vain_makes_the_next_time_up_come_later() -> None:
    state = PolicyState("v1")
    holds = []
    for i in range(8):
        state = state.goes_up("v0", 100.0 * i).goes_down("v1", 100.0 * i + 1)
        holds.append(state.hold_seconds)
    assert holds[:3] == [2 * HOLD_SECONDS, 4 * HOLD_SECONDS, 8 * HOLD_SECONDS]
    assert holds[-1] == LONGEST_HOLD_SECONDS
    assert state.goes_down("v2", 1e6).hold_seconds == HOLD_SECONDS


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


def test_a_forecast_grows_with_the_load_and_falls_down_the_ladder() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}))
    rates = [forecast(setting.rungs[0], setting, Sample(1.0, {"interactive": load(r)})) for r in (0.1, 0.5, 1.0, 3.0)]
    assert [f.tpot_seconds for f in rates] == sorted(f.tpot_seconds for f in rates)
    assert [f.ttft_seconds["interactive"] for f in rates] == sorted(f.ttft_seconds["interactive"] for f in rates)
    assert rates[0].load < 0.3
    assert rates[-1].load > 1
    rungs = [forecast(r, setting, Sample(1.0, {"interactive": load(1.0)})).tpot_seconds for r in setting.rungs]
    assert rungs == sorted(rungs, reverse=True)


def test_others_on_the_processor_make_everything_slower() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}))
    alone = forecast(setting.rungs[0], setting, Sample(1.0, {"interactive": load(0.1)}))
    shared = Sample(1.0, {"interactive": load(0.1)}, slowdown=slowdown_by_others(0.5))
    assert forecast(setting.rungs[0], setting, shared).tpot_seconds > 1.9 * alone.tpot_seconds
    assert slowdown_by_others(None) == 1.0
    assert slowdown_by_others(1.0) == pytest.approx(10)


def test_a_lower_priority_does_not_make_a_higher_one_wait() -> None:
    wanted = {"interactive": ClassObjectives(priority=1), "batch": ClassObjectives(priority=0)}
    setting = setting_for(Objectives(wanted))
    crowded = Sample(
        1.0, {"interactive": load(0.2), "batch": load(5.0)}, n_running=8, n_waiting=30, waiting_tokens=9000
    )
    found = forecast(setting.rungs[0], setting, crowded).ttft_seconds
    assert found["interactive"] < 2
    assert found["batch"] > 10


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


def test_excess_is_summed_by_priority() -> None:
    wanted = {"interactive": ClassObjectives(0.001, 0.001, priority=2), "batch": ClassObjectives(1e-6, None)}
    setting = setting_for(Objectives(wanted))
    sample = Sample(1.0, {"interactive": load(0.1), "batch": load(0.1)})
    found = excess_of(forecast(setting.rungs[0], setting, sample), setting, sample)
    assert len(found.by_priority) == 2
    assert 1 < found.by_priority[0] < found.by_priority[1]
    assert "of batch" in found.worst
