"""Policies as pure functions: never infeasible, no oscillation, monotone; memory at once; reasons in words."""

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
from lamella.qos.policies.decision import LASTING_SECONDS, LONGEST_LASTING_SECONDS, Policy, PolicyState
from lamella.qos.policies.forecast import Z95, forecast
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.predictive import Predictive, caution_of, excess_of, most_loss, worthwhile
from lamella.qos.policies.sample import ClassSample, Sample, Stream, slowdown_by_others
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.policies.slack import losses, step_seconds
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


def setting_for(wanted: Objectives) -> Setting:
    return Setting.of(ladder(4, joules=0.5), wanted)


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


def writing(n: int, ms_so_far: float, n_written: int = 21) -> tuple[Stream, ...]:
    """Streams that took so long for each token until now."""
    return (Stream("interactive", n_written, (n_written - 1) * ms_so_far / 1000),) * n


def test_streams_that_would_take_too_long_are_hurried_at_once_and_let_go_when_they_have_made_up() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.04)}))
    policy, state = Predictive(setting), PolicyState("v0")
    late = Sample(10.0, {"interactive": load(0.2)}, n_running=8, streams=writing(8, 41))
    down = policy.decide(state, late)
    assert setting.rung(down.variant).rank > 0
    assert (
        "of the running requests of interactive would take more than the 40 ms a token that are promised" in down.reason
    )
    still = policy.decide(down.state, replace(late, time=10.5))
    assert still.variant == down.variant
    early = replace(late, time=11.0, streams=writing(8, 12))
    assert policy.decide(still.state, early).variant == "v0"


@pytest.mark.parametrize(("slowness", "chosen"), [(0.47, "v1"), (0.45, "v2")])
def test_a_variant_that_is_hardly_faster_than_a_better_one_is_not_chosen(slowness: float, chosen: str) -> None:
    rungs = profile(variant("v0"), variant("v1", 0.5, kl=0.1), variant("v2", slowness, kl=0.4))
    setting = Setting.of(rungs, Objectives({"interactive": ClassObjectives(None, 0.03)}))
    late = Sample(10.0, {"interactive": load(0.2)}, n_running=8, streams=writing(8, 34))
    assert Predictive(setting).decide(PolicyState("v0"), late).variant == chosen
    tight = replace(late, available_bytes=0)  # it may still be the one that memory leaves
    small = replace(setting, rungs=[*setting.rungs[:2], replace(setting.rungs[2], memory_bytes=100 * MEBI)])
    assert Predictive(small).decide(PolicyState("v0"), tight).variant == "v2"


def test_what_is_faster_at_nothing_is_not_worthwhile_unless_it_runs() -> None:
    rungs = Setting.of(ladder(4), Objectives({})).rungs

    def names(running: str, *times: tuple[float, ...]) -> list[str]:
        by_rung = {f"v{i}": seconds for i, seconds in enumerate(times)}
        return [rung.name for rung in worthwhile(rungs, running, by_rung)]

    assert names("v0", (1.0,), (0.96,), (0.9,), (0.89,)) == ["v0", "v2"]
    assert names("v3", (1.0,), (0.96,), (0.9,), (0.89,)) == ["v0", "v2", "v3"]
    assert names("v0", (1.0,), (0.97,), (0.94,), (0.91,)) == ["v0", "v3"], "small steps add up"
    assert names("v0", (1.0, 1.0), (1.0, 0.9), (0.9, 1.0), (0.89, 0.89)) == ["v0", "v1", "v2"]
    assert names("v0", (1.0,), (2.0,), (3.0,), (4.0,)) == ["v0"]


def test_a_variant_that_only_reads_faster_is_a_choice_where_first_tokens_are_promised() -> None:
    quick = variant("v1", kl=0.1)
    quick = replace(quick, prompt=tuple(replace(p, seconds=p.seconds / 3) for p in quick.prompt))
    for ttft, chosen in ((0.1, "v1"), (None, "v0")):
        setting = Setting.of(
            profile(variant("v0"), quick), Objectives({"interactive": ClassObjectives(ttft, None if ttft else 0.2)})
        )
        sample = Sample(10.0, {"interactive": load(0.2)}, n_running=0)
        assert Predictive(setting).decide(PolicyState("v0"), sample).variant == chosen


def test_what_the_fastest_cannot_keep_either_is_no_reason_to_be_fast() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.04)}))
    for ms, expected in ((41, False), (4000, True)):
        sample = Sample(10.0, {"interactive": load(0.2)}, n_running=8, streams=writing(8, ms, n_written=200))
        assert (Predictive(setting).decide(PolicyState("v0"), sample).variant == "v0") == expected


def test_where_no_variant_keeps_the_promise_of_most_streams_the_quickest_makes_room() -> None:
    rungs = setting_for(Objectives({"interactive": ClassObjectives(None, 1.0)})).rungs
    sample = Sample(10.0, {"interactive": load(0.2)}, n_running=8, streams=writing(8, 20, n_written=11))
    full, alone = (step_seconds(rungs[-1], setting_for(Objectives({})), replace(sample, n_running=n)) for n in (8, 1))
    assert alone < 0.85 * full
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.85 * full)}))
    lost = losses(setting.rungs, setting, sample)
    assert all(lost[rung.name]["interactive"] > 0.8 for rung in setting.rungs)
    assert lost["v3"]["interactive"] == pytest.approx(lost["v0"]["interactive"], abs=0.1)
    for running in ("v0", "v2", "v3"):
        assert Predictive(setting).decide(PolicyState(running), sample).variant == "v3"


def test_a_variant_that_is_worse_and_slower_makes_no_room() -> None:
    """As Q6_K on processors that multiply Q8_0 several rows at a time."""
    slow = replace(variant("slow", 1.6, kl=0.5), bits_per_weight=6.0)
    sample = Sample(10.0, {"interactive": load(0.2)}, n_running=8, streams=writing(8, 50, n_written=11))
    best = replace(variant("quick", 1.0, kl=0.1), bits_per_weight=8.0)
    free = Setting.of(profile(best, slow), Objectives({}))
    promise = ClassObjectives(None, 0.85 * step_seconds(free.rung("quick"), free, sample))
    setting = Setting.of(profile(best, slow), Objectives({"interactive": promise}))
    assert [rung.name for rung in setting.rungs] == ["quick", "slow"]
    assert all(lost["interactive"] > 0.8 for lost in losses(setting.rungs, setting, sample).values())
    for running in ("quick", "slow"):
        assert Predictive(setting).decide(PolicyState(running), sample).variant == "quick"


def test_first_tokens_in_time_need_a_variant_that_bears_more_than_the_load_for_a_while() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(1.0)}))
    policy = Predictive(setting)
    quiet, burst = {"interactive": load(0.2)}, {"interactive": load(5.0)}
    down = policy.decide(PolicyState("v0"), Sample(10.0, burst))
    assert setting.rung(down.variant).rank > 0
    assert "time to first token of interactive" in down.reason
    assert "1000 ms are promised" in down.reason
    waiting = policy.decide(down.state, Sample(20.0, quiet))
    assert waiting.variant == down.variant
    up = policy.decide(waiting.state, Sample(20.0 + waiting.state.lasting_seconds, quiet))
    assert up.variant == "v0"


def test_forecasts_are_the_more_cautious_the_more_promises_were_broken() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    cautions = [caution_of(Sample(0.0, {"interactive": replace(load(1.0), kept_share=k)})) for k in (1, 0.98, 0.9)]
    assert cautions == [0.0, pytest.approx(Z95 / 2), Z95]
    sample = Sample(10.0, {"interactive": load(1.0)})
    bold, careful = (forecast(setting.rungs[0], setting, sample, 1.0, c).tpot_seconds for c in (0.0, Z95))
    assert bold < careful


def test_a_better_variant_must_bear_more_than_the_load_and_the_running_one_only_the_load() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(1.0)}))
    policy, kinds = Predictive(setting), set()
    for rate in (i / 10 for i in range(1, 60)):
        sample = Sample(10.0, {"interactive": load(rate)})
        found = [forecast(setting.rungs[0], setting, sample, g, caution_of(sample)) for g in (1, 1.2)]
        met = [one.ttft_seconds["interactive"] <= 1.0 for one in found]
        kinds.add(tuple(met))
        assert (settle(policy, PolicyState("v1"), sample)[-1] == "v0") == met[1]
        assert (settle(policy, PolicyState("v0"), sample)[-1] == "v0") == met[0]
    assert kinds == {(True, True), (True, False), (False, False)}


def test_the_more_was_kept_lately_the_more_is_risked() -> None:
    assert most_loss(1.0) > most_loss(0.96) > most_loss(0.9) > 0
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.04)}))
    ranks = []
    for kept in (0.9, 1.0):
        seen = replace(load(0.2), kept_share=kept, lengths=[60] * 20)
        sample = Sample(10.0, {"interactive": seen}, n_running=8, streams=writing(8, 36, n_written=50))
        ranks.append(setting.rung(Predictive(setting).decide(PolicyState("v0"), sample).variant).rank)
    assert ranks[0] > ranks[1]


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


@pytest.mark.parametrize(
    ("is_own", "available", "steps_down"),
    [(False, GIB, False), (True, GIB, True), (False, 100 * MEBI, True), (False, None, True)],
    ids=["another container's limit", "the own group's", "little is left", "nobody knows what is left"],
)
def test_a_stall_of_others_under_their_own_limit_changes_nothing(
    *, is_own: bool, available: int | None, steps_down: bool
) -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}))
    sample = Sample(10.0, available_bytes=available, memory_stall=0.3, is_own_stall=is_own)
    for policy in (Predictive(setting), Threshold(setting)):
        assert (policy.decide(PolicyState("v0", since=9.9), sample).variant != "v0") is steps_down


def test_memory_frees_as_much_as_is_missing() -> None:
    setting = setting_for(Objectives())
    squeezed = Sample(10.0, available_bytes=RESERVE_BYTES - 100 * MEBI)  # 100 MiB too little: two rungs of 70 MiB
    assert Predictive(setting).decide(PolicyState("v0"), squeezed).variant == "v2"
    assert Predictive(setting).decide(PolicyState("v3"), squeezed).variant == "v3"  # nothing smaller is left


def test_a_quality_floor_holds_only_while_its_class_has_requests() -> None:
    wanted = Objectives({"interactive": ClassObjectives(None, 0.03), "batch": ClassObjectives(most_kl=0.02)})
    setting = setting_for(wanted)
    busy, streams = load(2.5), writing(6, 29)
    alone, both = (
        Predictive(setting).decide(PolicyState("v0"), Sample(1.0, classes, n_running=6, streams=streams))
        for classes in ({"interactive": busy}, {"interactive": busy, "batch": load(0.01)})
    )
    assert setting.rung(alone.variant).rank > 1
    assert both.variant == "v1"


def test_the_higher_priority_decides_where_not_everything_can_be_met() -> None:
    """``large`` reads prompts quickly and writes slowly, ``small`` the other way round."""
    reader, writer = variant("reader", kl=0.0), variant("writer", kl=0.0)
    reader = replace(reader, steps=tuple(replace(p, seconds=p.seconds * 3) for p in reader.steps))
    writer = replace(writer, prompt=tuple(replace(p, seconds=p.seconds * 3) for p in writer.prompt))
    both = {"interactive": load(0.05, prompt=400.0), "batch": load(0.05, prompt=400.0)}
    sample = Sample(1.0, both, n_running=1, streams=[Stream("batch", 21, 20 * 0.04)])
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
        holds.append(state.lasting_seconds)
    assert holds[:3] == [2 * LASTING_SECONDS, 4 * LASTING_SECONDS, 8 * LASTING_SECONDS]
    assert holds[-1] == LONGEST_LASTING_SECONDS
    assert state.goes_down("v2", 1e6).lasting_seconds == LASTING_SECONDS


def test_a_larger_variant_that_makes_memory_short_again_and_again_is_tried_less_and_less() -> None:
    """Also where nothing is promised: loading it stalls everybody, and they would wait every half minute."""
    policy, state, ups = Predictive(setting_for(Objectives())), PolicyState("v1"), []
    for tick in range(4 * 1200):
        time = tick / 4
        stalls = state.variant == "v0" and time - state.since >= 1
        decision = policy.decide(state, Sample(time, memory_stall=0.5 if stalls else 0.0))
        if (state.variant, decision.variant) == ("v1", "v0"):
            ups.append(time)
        state = decision.state
    waits = [after - before for before, after in itertools.pairwise(ups)]
    assert waits[0] < CALM_SECONDS + 10
    assert waits[-1] > CALM_SECONDS + LONGEST_LASTING_SECONDS - 1
    assert len(ups) < 20


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
    first = forecast(setting.rungs[0], setting, sample).ttft_seconds
    found = excess_of(first, {"interactive": 0.5}, setting, sample)
    assert found.is_late
    assert len(found.by_priority) == 2
    assert 1 < found.by_priority[0] < found.by_priority[1]
    assert "of batch" in found.worst
