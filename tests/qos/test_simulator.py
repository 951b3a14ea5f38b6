"""The simulator: what can be reckoned by hand, conservation of tokens, promises kept, and speed."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import correlation, fmean, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.predictive import Predictive
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.schedule import Schedule
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.policies.threshold import Threshold
from lamella.qos.simulator.oracle import plan_oracle
from lamella.qos.simulator.outcome import Outcome
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.simulator.slowdown import Slowdown
from lamella.qos.traces.arrivals import Arrival, Trace
from lamella.qos.traces.generators import Load, bursts, poisson
from lamella.qos.watching import LoadWatch, p95
from tests.qos.profiles import ladder, true_chunk, true_step

TPOT = 0.045
PROMISED = Objectives({"interactive": ClassObjectives(2.0, TPOT)})
BURSTS = bursts(Load(0.6, 240.0), peak=3.0, every=60.0, length=15.0, seed=1)


def setting(objectives: Objectives = PROMISED, *, joules: float | None = None) -> Setting:
    return Setting.of(ladder(5, joules=joules), objectives)


def run(trace: Trace, variant: str = "v0", **options: Any) -> Outcome:
    chosen = ReplayOptions(start=variant, **options)
    return replay(trace, setting(), Static(variant), chosen)


def trace_of(*arrivals: Arrival) -> Trace:
    return Trace("t", arrivals)


def test_what_nobody_asks_about_does_not_pile_up() -> None:
    watch = LoadWatch()
    for second in range(1000):
        watch.arrived(second, "x", n_prompt=1)
        watch.began(second, "x", ttft_seconds=0.1)
        watch.ended(second, "x", n_generated=1, tpot_seconds=0.1, kept=True)
    watched = watch._classes["x"]
    assert max(len(watched.arrivals), len(watched.ttfts), len(watched.tpots)) <= 11
    assert watch.classes(999.0)["x"].arrivals_per_second == 1.0


def test_one_request_alone_takes_what_the_profile_says() -> None:
    outcome = run(trace_of(Arrival(1.25, 256, 11)))
    (one,) = outcome.served
    assert one.ttft_seconds == pytest.approx(true_chunk(256, 0))
    steps = [true_step(1, 256 + i) for i in range(10)]
    assert one.tpot_seconds == pytest.approx(sum(steps) / 10)
    assert one.tokens == {"v0": 11}


def test_a_prompt_longer_than_a_step_is_read_in_pieces() -> None:
    (one,) = run(trace_of(Arrival(0.0, 600, 1))).served
    assert one.ttft_seconds == pytest.approx(true_chunk(512, 0) + true_chunk(88, 0), rel=1e-6)  # no deep prompt point
    assert one.tpot_seconds == 0.0


def test_two_that_come_together_write_in_the_same_steps() -> None:
    both = run(trace_of(Arrival(0.0, 64, 21), Arrival(0.0, 64, 21))).served
    assert both[0].ttft_seconds == both[1].ttft_seconds == pytest.approx(true_chunk(128, 0))
    steps = [true_step(2, 64 + i) for i in range(20)]
    assert both[0].tpot_seconds == pytest.approx(sum(steps) / 20)


def test_a_prompt_is_read_between_the_steps_of_a_stream() -> None:
    alone = run(trace_of(Arrival(0.0, 64, 200))).served[0]
    first, second = run(trace_of(Arrival(0.0, 64, 200), Arrival(1.0, 512, 2))).served
    assert first.tpot_seconds > alone.tpot_seconds
    assert second.ttft_seconds > true_chunk(512, 0)  # in pieces, each with a step of the other
    assert sum(first.tokens.values()) == 200


def test_more_than_the_slots_wait_and_the_higher_priority_goes_first() -> None:
    objectives = Objectives({"interactive": ClassObjectives(priority=1), "batch": ClassObjectives()})
    arrivals = [*(Arrival(0.0, 64, 100, "batch") for _ in range(10)), Arrival(0.5, 64, 10, "interactive")]
    chosen = setting(objectives)
    served = replay(trace_of(*arrivals), chosen, Static("v0")).served
    assert served[10].ttft_seconds < 0.5
    assert served[9].ttft_seconds > served[0].ttft_seconds + 2
    assert sum(sum(s.tokens.values()) for s in served) == 1010


def test_requests_that_cannot_be_taken_fail_and_meet_nothing() -> None:
    crowd = [Arrival(0.0, 64, 50) for _ in range(30)]
    outcome = run(trace_of(*crowd, Arrival(1.0, 5000, 1)), max_queue=12)
    assert outcome.n_failed == 30 - 8 - 12 + 1
    assert {s.failure for s in outcome.served if s.failure} == {
        "too many requests are open", "5000 + 1 tokens, the context holds 4096",
    }  # fmt: skip
    free = replay(trace_of(*crowd), setting(Objectives({"interactive": ClassObjectives()})), Static("v0"))
    assert free.attainment == 1.0
    assert run(trace_of(Arrival(1.0, 5000, 1))).attainment == 0.0


class _Once:
    """Wants ``v1`` from a time on."""

    name = "once"

    def __init__(self, time: float) -> None:
        self._time = time

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        wanted = "v1" if sample.time >= self._time else "v0"
        return Decision(
            wanted, "it is time", state if wanted == state.variant else state.goes_down(wanted, sample.time)
        )


def test_a_switch_waits_for_the_pages_and_costs_its_stall() -> None:
    trace = trace_of(Arrival(0.0, 64, 200))
    outcome = replay(trace, setting(), _Once(1.0))
    (one,) = outcome.served
    before = 1.2 - true_chunk(64, 0)  # 0.2 s to prepare
    assert one.tokens["v0"] == pytest.approx(before / true_step(1, 90), abs=2)
    assert sum(one.tokens.values()) == 200
    assert outcome.n_switches == 1
    assert [(c.before, c.after, c.reason) for c in outcome.changes] == [("v0", "v1", "it is time")]
    total = one.tokens["v0"] * 0.0 + one.tokens["v1"] * 0.02
    assert outcome.mean_kl == pytest.approx(total / 200)
    assert sum(outcome.share_at.values()) == pytest.approx(1)


def test_a_slower_machine_takes_longer() -> None:
    slow = run(trace_of(Arrival(0.0, 256, 11)), slowdown=3.0).served[0]
    fast = run(trace_of(Arrival(0.0, 256, 11))).served[0]
    assert slow.ttft_seconds == pytest.approx(3 * fast.ttft_seconds)
    assert slow.tpot_seconds == pytest.approx(3 * fast.tpot_seconds)


def test_requests_of_one_burst_meet_the_same_spell_and_those_of_a_minute_later_another() -> None:
    burst = [Arrival(60.0 * minute + i / 100, 16, 20) for minute in range(60) for i in range(2)]
    alike = run(trace_of(*burst)).served
    found = run(trace_of(*burst), scatter=0.1, seed=3).served
    off = [math.log(a.tpot_seconds / b.tpot_seconds) for a, b in zip(found, alike, strict=True)]
    assert stdev(off) == pytest.approx(0.1, rel=0.3)
    assert correlation(off[::2], off[1::2]) > 0.95
    assert abs(correlation(off[:-2:2], off[2::2])) < 0.4


def test_spells_are_drawn_by_the_seed_and_are_none_where_nothing_scatters() -> None:
    (first, again, other), plain = (run(BURSTS, scatter=0.1, seed=s) for s in (1, 1, 2)), run(BURSTS)
    assert first.served == again.served != other.served
    assert run(BURSTS, seed=1).served == plain.served


def test_a_machine_that_was_watched_is_as_slow_as_it_was_then_and_straight_between() -> None:
    trace = trace_of(*(Arrival(at, 16, 2) for at in (0.0, 100.0, 150.0, 200.0, 900.0)))
    found, alike = run(trace, slowdown=1.5, course=((100.0, 0.8), (200.0, 1.2))).served, run(trace).served
    times = [a.tpot_seconds / b.tpot_seconds / 1.5 for a, b in zip(found, alike, strict=True)]
    assert times == pytest.approx([0.8, 0.8, 1.0, 1.2, 1.2], abs=0.002)


def test_a_machine_that_was_watched_wavers_too_where_that_is_asked() -> None:
    steady, wavering = (Slowdown(1.1, scatter, seed=1, course=((5.0, 2.0), (0.0, 3.0))) for scatter in (0.0, 0.2))
    spells = Slowdown(1.0, 0.2, seed=1)
    for at in (0.0, 2.5, 5.0, 60.0):
        assert wavering.at(at) == pytest.approx(steady.at(at) * spells.at(at))
    assert steady.at(90.0) == pytest.approx(2.2)


def test_no_machine_computes_before_it_began() -> None:
    with pytest.raises(InvalidRequest, match="not 0"):
        Slowdown(course=((0.0, 1.0), (5.0, 0.0)))


class _Listens:
    """Stays, and remembers how slow it was told that the machine is, by its time."""

    name = "listens"

    def __init__(self) -> None:
        self.told: dict[float, float] = {}

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        self.told[sample.time] = sample.slowdown
        return Decision(state.variant, "it stays", state)


def test_a_policy_is_told_of_a_watched_machine_by_the_steps_of_late() -> None:
    listens, trace = _Listens(), trace_of(Arrival(0.0, 16, 60), Arrival(400.0, 16, 2000))
    options = ReplayOptions(start="v0", slowdown=1.1, course=((200.0, 1.0), (300.0, 1.3)))
    replay(trace, setting(), listens, options)
    assert listens.told[399.75] == 1.1  # nothing has computed since it became slow
    assert listens.told[max(listens.told)] == pytest.approx(1.43)


def test_a_policy_is_told_of_spells_by_the_steps_of_late() -> None:
    listens, steady, trace = _Listens(), _Listens(), trace_of(*(Arrival(10.0 * i, 16, 60) for i in range(60)))
    found = replay(trace, setting(), listens, ReplayOptions(start="v0", scatter=0.2, slowdown=1.1, seed=3)).served
    alike = replay(trace, setting(), steady, ReplayOptions(start="v0", slowdown=1.1)).served
    assert set(steady.told.values()) == {1.1}
    off = [math.log(a.tpot_seconds / b.tpot_seconds) for a, b in zip(found, alike, strict=True)]
    told = [
        math.log(fmean(v for at, v in listens.told.items() if one.arrived <= at < one.arrived + 10.0) / 1.1)
        for one in found
    ]
    assert correlation(off, told) > 0.8
    assert abs(fmean(told) - fmean(off)) < 0.05


arrivals = st.lists(
    st.builds(Arrival, st.floats(0, 20), st.integers(1, 1500), st.integers(1, 300)), min_size=1, max_size=30
).map(lambda found: trace_of(*sorted(found, key=lambda a: a.seconds)))


@settings(deadline=None, max_examples=40)
@given(arrivals)
def test_every_token_is_written_once_and_no_time_is_lost(trace: Trace) -> None:
    outcome = replay(trace, setting(), Predictive(setting()))
    assert [sum(s.tokens.values()) for s in outcome.served] == [a.n_generated for a in trace.arrivals]
    assert all(0 < s.ttft_seconds < math.inf for s in outcome.served)
    assert sum(outcome.share_at.values()) == pytest.approx(1)
    assert outcome.virtual_seconds >= trace.seconds


@settings(deadline=None, max_examples=20)
@given(arrivals)
def test_sampling_more_often_does_not_change_what_a_static_variant_does(trace: Trace) -> None:
    """Steps that are passed over together are the same steps."""
    coarse, fine = run(trace, sample_seconds=1e6), run(trace, sample_seconds=0.01)
    for a, b in zip(coarse.served, fine.served, strict=True):
        assert a.tokens == b.tokens
        assert a.ttft_seconds == pytest.approx(b.ttft_seconds)
        assert a.tpot_seconds == pytest.approx(b.tpot_seconds)


def test_equal_replays_are_equal() -> None:
    first, second = (replay(BURSTS, setting(), Predictive(setting())) for _ in range(2))
    assert replace(first, real_seconds=0) == replace(second, real_seconds=0)


def test_predictive_keeps_the_promise_in_bursts_better_than_the_best_variant_and_more_exactly_than_the_worst() -> None:
    chosen = setting()
    best, worst = run(BURSTS, "v0"), run(BURSTS, "v4")
    found = replay(BURSTS, chosen, Predictive(chosen))
    assert best.attainment < 0.6
    assert worst.attainment == 1.0
    assert found.attainment >= 0.95
    assert found.mean_kl is not None
    assert worst.mean_kl is not None
    assert found.mean_kl < 0.75 * worst.mean_kl


def test_a_constant_load_lets_policies_come_to_rest() -> None:
    steady = trace_of(*(Arrival(i * 0.8, 128, 64) for i in range(600)))
    for policy in (Predictive(setting()), Threshold(setting())):
        outcome = replay(steady, setting(), policy)
        late = [c for c in outcome.changes if c.time > 240]
        assert len(late) <= 4, policy.name
        assert outcome.attainment > 0.9, policy.name


def test_the_oracle_keeps_the_promise_with_less_divergence_than_predictive() -> None:
    trace = BURSTS.until(120)
    plan = plan_oracle(trace, setting(), segment_seconds=10.0)
    found, predictive = replay(trace, setting(), plan), replay(trace, setting(), Predictive(setting()))
    assert found.attainment >= 0.95
    assert found.mean_kl is not None
    assert predictive.mean_kl is not None
    assert found.mean_kl < predictive.mean_kl
    assert plan_oracle(trace, setting(Objectives({"interactive": ClassObjectives()}))).variants[0] == "v0"


def test_an_oracle_that_cannot_keep_the_promise_ends_with_the_worst_variant() -> None:
    impossible = setting(Objectives({"interactive": ClassObjectives(tpot_seconds=0.001)}))
    plan = plan_oracle(BURSTS.until(30), impossible)
    assert "v4" in plan.variants
    assert plan.decide(PolicyState("v0"), Sample(-1.0)).variant == plan.variants[0]
    assert Schedule((0.0, 5.0), ("a", "b")).decide(PolicyState("a"), Sample(5.0)).variant == "b"


def test_a_replay_is_a_thousand_times_faster_than_the_time_it_replays() -> None:
    trace = poisson(Load(1.0, 1800.0))
    outcome = run(trace, "v2")
    assert outcome.virtual_seconds / outcome.real_seconds > 500  # thousands on a machine of our own


def test_energy_is_idle_power_and_tokens() -> None:
    chosen = setting(joules=0.5)
    outcome = replay(trace_of(Arrival(0.0, 100, 10)), chosen, Static("v0"))
    assert outcome.joules == pytest.approx(5.0 * outcome.virtual_seconds + 10 * 0.5 + 100 * 0.05)
    assert run(BURSTS).joules is None


def test_classes_are_reported_each_with_its_promises() -> None:
    objectives = Objectives({"interactive": ClassObjectives(2.0, TPOT, 0.01), "batch": ClassObjectives()})
    trace = poisson(Load(2.0, 60.0, classes={"interactive": 1, "batch": 1}))
    outcome = replay(trace, setting(objectives), Static("v1"), ReplayOptions(start="v1"))
    batch, interactive = outcome.classes["batch"], outcome.classes["interactive"]
    assert batch.attainment == 1.0
    kept = interactive.ttft_attainment, interactive.tpot_attainment
    assert sum(kept) - 1 <= interactive.attainment <= min(kept) < 1
    assert interactive.floor_kept == 0.0  # v1 diverges by 0.02
    assert batch.n_requests + interactive.n_requests == len(trace.arrivals)
    assert interactive.tpot_p95_seconds is not None
    assert interactive.tpot_p95_seconds > TPOT


def test_unknown_classes_and_variants_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'batch'"):
        replay(trace_of(Arrival(0.0, 1, 1, "batch")), setting(), Static("v0"))
    with pytest.raises(UnknownVariant, match="v9"):
        run(BURSTS, "v9")


def test_a_watch_sees_a_burst_before_the_long_window_does() -> None:
    watch = LoadWatch()
    for i in range(20):
        watch.arrived(float(i), "a", 100)
    calm = watch.classes(20.0)["a"]
    assert calm.arrivals_per_second == pytest.approx(0.95, abs=0.1)
    for i in range(12):
        watch.arrived(20.0 + i / 6, "a", 100)
    assert watch.classes(22.0)["a"].arrivals_per_second > 2.5
    assert watch.classes(60.0) == {}


def test_a_watch_knows_lengths_and_latencies() -> None:
    watch = LoadWatch()
    watch.arrived(0.0, "a", 100)
    assert watch.classes(1.0)["a"].mean_generated == 64
    watch.began(1.0, "a", 0.5)
    watch.ended(2.0, "a", 10, 0.05, kept=True)
    watch.ended(2.0, "a", 1, None, kept=False)
    seen = watch.classes(3.0)["a"]
    assert (seen.mean_generated, seen.ttft_p95_seconds, seen.tpot_p95_seconds) == (5.5, 0.5, 0.05)
    assert seen.kept_share == pytest.approx(0.99)
    watch.arrived(8.0, "a", 100)
    assert watch.classes(15.0)["a"].tpot_p95_seconds is None


def test_the_95th_percentile() -> None:
    assert p95(range(1, 101)) == 95
    assert p95([3.0]) == 3.0
    assert p95([]) is None
