"""What no policy may break: memory at once, quality floors, power."""

from __future__ import annotations

import itertools

import pytest

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.constraints import CALM_SECONDS, RESERVE_BYTES
from lamella.qos.policies.decision import LONGEST_LASTING_SECONDS, PolicyState
from lamella.qos.policies.predictive import Predictive
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.threshold import Threshold
from tests.qos.loads import GIB, load, setting_for, settle, writing
from tests.qos.profiles import MEBI


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


def test_power_on_battery_has_a_ceiling_of_its_own() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives()}, power_watts=200, battery_watts=60))
    busy = {"interactive": load(2.0)}
    assert Predictive(setting).decide(PolicyState("v0"), Sample(1.0, busy)).variant == "v0"
    on_battery = Predictive(setting).decide(PolicyState("v0"), Sample(1.0, busy, on_battery=True))
    assert setting.rung(on_battery.variant).rank > 0


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
