"""What ``predictive`` chooses, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.decision import PolicyState
from lamella.qos.policies.forecast import forecast
from lamella.qos.policies.predictive import Predictive, caution_of, excess_of, most_loss, worthwhile
from lamella.qos.policies.sample import Sample, Stream
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.slack import losses, step_seconds
from tests.qos.loads import load, setting_for, settle, writing
from tests.qos.profiles import MEBI, ladder, profile, variant


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
