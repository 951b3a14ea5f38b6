"""The loop in a running server: what it hears, what it learns, and what may be asked of it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from lamella.api.controlling import LINE_SECONDS, ChangeLines
from lamella.batching.messages import Accepted, Finished, FinishReason, Generate, Step, Switched, TokenEvent
from lamella.core.errors import InvalidRequest
from lamella.qos.controller import LoggedChange
from lamella.qos.live.control import LEARN_SECONDS, VariantControl
from lamella.qos.live.hearing import Observed, RequestHearing
from lamella.qos.live.learning import LEAST_STEPS, alone, learned, pace_of
from lamella.qos.objectives.files import objectives_fields, objectives_of
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.pace import FOLLOW_SECONDS
from lamella.qos.policies.sample import ClassSample, Sample, Stream
from lamella.qos.policies.slack import AIM
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiles.refresh import ObservedPrompt, ObservedStep
from lamella.qos.profiles.speed import SpeedModel
from tests.qos.profiles import ladder

QUICK = Objectives({"interactive": ClassObjectives(tpot_seconds=0.06, priority=3), "batch": ClassObjectives()})


class Talk:
    """Messages at times, to what hears them."""

    def __init__(self, objectives: Objectives | None = None) -> None:
        self.now = 10.0
        self.hearing = RequestHearing(objectives, clock=lambda: self.now)

    def submit(self, number: int, class_name: str = "", variant: str | None = None) -> None:
        self.hearing.submitted(Generate(id=number, prompt="x", class_name=class_name, variant=variant))

    def accept(self, number: int, n_prompt: int = 20) -> None:
        self.hearing.heard(Accepted(id=number, prompt_tokens=n_prompt))

    def step(self, *numbers: int, after: float = 0.1, variant: str = "v0") -> None:
        self.now += after
        self.hearing.heard(Step(variant, [TokenEvent(n, 1, "a") for n in numbers]))

    def finish(self, number: int, n_prompt: int = 20, cached: int = 0, reason: FinishReason = "stop") -> None:
        self.hearing.heard(Finished(id=number, reason=reason, prompt_tokens=n_prompt, cached_tokens=cached))
        self.hearing.gone(number)

    def seen(self, class_name: str = "interactive") -> ClassSample:
        return self.hearing.watch.classes(self.now)[class_name]


def test_latencies_of_requests_are_heard_by_class() -> None:
    talk = Talk(QUICK)
    talk.submit(1, "batch")
    talk.accept(1, 30)
    talk.step(1, after=0.5)
    talk.step(1, after=0.2)
    talk.step(1, after=0.1)
    talk.finish(1)
    seen = talk.seen("batch")
    assert seen.ttft_p95_seconds == pytest.approx(0.5)
    assert seen.tpot_p95_seconds == pytest.approx(0.15)
    assert (seen.mean_prompt, seen.mean_generated, seen.kept_share) == (30, 3, 1.0)


def test_what_was_promised_and_not_kept_is_heard() -> None:
    talk = Talk(QUICK)
    talk.submit(1)
    talk.accept(1)
    for _ in range(3):
        talk.step(1, after=0.07)
    talk.finish(1)
    assert talk.seen().kept_share < 1


def test_a_reader_that_left_breaks_no_promise() -> None:
    talk = Talk(QUICK)
    talk.submit(1)
    talk.accept(1)
    for _ in range(3):
        talk.step(1, after=0.5)
    talk.finish(1, reason="cancelled")
    assert talk.seen().kept_share == 1


def test_requests_are_open_from_their_submission_until_they_are_gone() -> None:
    talk = Talk()
    talk.submit(1)
    talk.submit(2)
    talk.accept(1, 50)
    talk.accept(2, 20)
    assert (talk.hearing.n_open, talk.hearing.waiting_tokens) == (2, 70)
    talk.step(1)
    assert talk.hearing.waiting_tokens == 20
    talk.hearing.gone(2)
    talk.hearing.gone(2)
    assert (talk.hearing.n_open, talk.hearing.waiting_tokens) == (1, 0)


def test_an_engine_that_accepts_again_after_a_restart_counts_once() -> None:
    talk = Talk()
    talk.submit(1)
    talk.accept(1)
    talk.now += 0.5
    before = talk.seen().arrivals_per_second
    talk.accept(1)
    assert talk.seen().arrivals_per_second == before


def test_steps_that_only_write_are_observed() -> None:
    talk = Talk()
    for number in (1, 2):
        talk.submit(number)
        talk.accept(number)
    talk.step(1, 2)
    talk.step(1, 2, after=0.03)
    (observed,) = talk.hearing.take_observed()
    assert observed == Observed("v0", ObservedStep(2, 21.0, pytest.approx(0.03)))  # type: ignore[arg-type]
    assert not talk.hearing.take_observed()


@pytest.mark.parametrize("what", ["a new request", "one that is read", "another variant", "an own variant", "an end"])
def test_steps_with_something_else_in_between_are_not_observed(what: str) -> None:
    talk = Talk()
    for number in (1, 2):
        talk.submit(number, variant="v0" if what == "an own variant" else None)
        talk.accept(number)
    talk.step(1, *([] if what == "one that is read" else [2]))
    if what == "a new request":
        talk.submit(3)
    if what == "an end":
        talk.finish(2)
        talk.step(1)
    else:
        talk.step(1, *([] if what == "one that is read" else [2]), variant="v1" if what == "another variant" else "v0")
    assert not talk.hearing.take_observed()


def test_a_prompt_alone_is_observed_unless_a_part_was_cached() -> None:
    for cached, others, n in ((0, False, 1), (5, False, 0), (0, True, 0)):
        talk = Talk()
        talk.submit(1)
        if others:
            talk.submit(2)
        talk.accept(1)
        talk.step(1, after=0.4)
        talk.finish(1, cached=cached)
        found = talk.hearing.take_observed()
        assert len(found) == n
        assert all(o == Observed("v0", ObservedPrompt(20, pytest.approx(0.4))) for o in found)  # type: ignore[arg-type]


def test_a_profile_moves_towards_the_median_of_what_was_observed() -> None:
    profile = ladder(2)
    before = SpeedModel(profile.variant("v0"), 512).writing(4, 64)
    seen = [Observed("v0", ObservedStep(4, 64, 1.5 * before))] * LEAST_STEPS + [Observed("v0", ObservedStep(4, 64, 99))]
    found = learned(profile, seen)
    assert before < SpeedModel(found.variant("v0"), 512).writing(4, 64) < 1.5 * before
    assert found.variant("v1") == profile.variant("v1")


def test_few_steps_teach_nothing_and_others_load_is_taken_out() -> None:
    profile = ladder(2)
    before = SpeedModel(profile.variant("v0"), 512).writing(4, 64)
    few = [Observed("v0", ObservedStep(4, 64, 9.0))] * (LEAST_STEPS - 1)
    assert learned(profile, few) is profile
    slowed = learned(profile, alone([Observed("v0", ObservedStep(4, 64, 2 * before))] * LEAST_STEPS, 2.0))
    assert SpeedModel(slowed.variant("v0"), 512).writing(4, 64) == pytest.approx(before)


class Server:
    """A control with an engine behind it that only remembers."""

    def __init__(self, hold_seconds: float | None = 300.0) -> None:
        self.running, self.sample = "v0", Sample(0.0)
        self.hearing = RequestHearing()
        self.control = VariantControl(
            self.hearing,
            running=lambda: self.running,
            switch=self.switch,
            take=self.take,
            figures=self.figures,
            hold_seconds=hold_seconds,
        )

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        before, self.running = self.running, variant
        return Switched(id=0, before=before, after=variant, n_weights=1, n_shards=1, stall_seconds=0, prepare_seconds=0)

    async def take(self) -> Sample:
        return self.sample

    async def figures(self) -> dict[str, Any]:
        return {"batch": 3}

    def document(self) -> dict[str, Any]:
        return asyncio.run(self.control.document())

    def tick(self) -> None:
        asyncio.run(self.control.controller.tick())


def busy(time: float, rate: float = 6.0, n: int = 8) -> Sample:
    """``n`` streams that have taken as long as they may so far."""
    streams = [Stream("interactive", 21, 20 * 0.06)] * n
    return Sample(time, {"interactive": ClassSample(rate, 60, 120, 60)}, n_running=n, streams=streams)


def test_without_objectives_hands_switches_are_kept_and_nothing_else() -> None:
    server = Server()
    asyncio.run(server.control.switch("v2"))
    server.tick()
    document = server.document()
    assert document["control"] is None
    (decision,) = document["decisions"]
    assert (decision["from"], decision["to"], decision["by"], decision["failure"]) == ("v0", "v2", "hand", None)
    assert document["sample"] == {"batch": 3}
    with pytest.raises(InvalidRequest, match="--objectives"):
        server.control.change(is_on=False)


def test_a_policy_steers_and_says_why() -> None:
    server = Server()
    server.control.steer(ladder(), QUICK, "predictive")
    server.sample = busy(1.0)
    server.tick()
    assert server.running != "v0"
    document = server.document()
    assert document["decisions"][0]["by"] == "policy"
    assert "promised" in document["decisions"][0]["reason"]
    control = document["control"]
    assert (control["policy"], control["is_on"], control["held_until"]) == ("predictive", True, None)
    assert control["objectives"]["class"]["interactive"]["tpot_p95_ms"] == 60


def test_on_and_off_and_the_end_of_a_hold() -> None:
    server = Server()
    server.control.steer(ladder(), QUICK, "static:v1")
    server.control.change(is_on=False)
    server.tick()
    assert server.running == "v0"
    asyncio.run(server.control.switch("v3"))
    server.control.change(is_on=True)
    assert server.document()["control"]["held_until"] is None
    server.tick()
    assert server.running == "v1"


@pytest.mark.parametrize(("said", "then_held"), [(None, True), (math.inf, False)])
def test_a_choice_by_hand_stays_for_ever_only_while_nothing_is_promised(said: float | None, *, then_held: bool) -> None:
    server = Server(hold_seconds=said)
    server.control.steer(ladder(), Objectives(memory_bytes=1 << 30), "predictive")
    asyncio.run(server.control.switch("v2"))
    control = server.document()["control"]
    assert (control["is_held"], control["held_until"]) == (True, None)
    server.control.change(objectives=QUICK)
    control = server.document()["control"]
    assert control["is_held"]
    assert (control["held_until"] is not None) is then_held


def test_other_objectives_and_other_policies_while_it_runs() -> None:
    server = Server()
    server.control.steer(ladder(), QUICK, "predictive")
    strict = Objectives({"interactive": ClassObjectives(most_kl=0.03)})
    server.control.change(objectives=strict, policy="threshold")
    assert server.control.steering is not None
    assert (server.control.steering.objectives, server.control.steering.policy) == (strict, "threshold")
    assert server.hearing.objectives is strict
    impossible = Objectives({"interactive": ClassObjectives(tpot_seconds=1e-6)})
    with pytest.raises(InvalidRequest, match="the nearest is"):
        server.control.change(objectives=impossible)
    assert server.control.steering.objectives is strict


def test_objectives_as_a_document_and_back() -> None:
    stated = Objectives({"a": ClassObjectives(1.5, 0.08, 0.1, 2), "b": ClassObjectives()}, 2 << 30, 25.0, 10.0)
    assert objectives_of(objectives_fields(stated)) == stated
    with pytest.raises(InvalidRequest, match="speed"):
        objectives_of({"class": {"a": {"speed": 3}}})


def test_a_request_has_the_class_that_it_names_or_the_first_one() -> None:
    server = Server()
    assert server.control.request_class("whatever", None).name == ""
    assert server.control.request_class(None, 5).priority == 5
    server.control.steer(ladder(), QUICK, "predictive")
    found = server.control.request_class(None, None)
    assert (found.name, found.priority) == ("interactive", 3)
    assert server.control.request_class("batch", 7).priority == 7
    with pytest.raises(InvalidRequest, match="batch, interactive"):
        server.control.request_class("bulk", None)


def hear(server: Server, variant: str, times: float, of: Profile, n: int = 8) -> None:
    """Steps of ``n`` streams that took ``times`` as long as the profile says."""
    seconds = times * SpeedModel(of.variant(variant), 512).writing(n, 64)
    server.hearing._observed.extend([Observed(variant, ObservedStep(n, 64, seconds))] * LEAST_STEPS)


def test_what_is_heard_moves_the_profile_and_the_policy_knows() -> None:
    server = Server()
    server.control.steer(ladder(2), QUICK, "predictive")
    server.sample = busy(0.0, rate=0.3, n=1)
    server.tick()
    assert server.running == "v0"
    for _ in range(50):  # steps turn out to take five times as long as in the profile, and those of v1 do not
        for _ in range(8):
            hear(server, "v1", 1.0, ladder(2))
        for n in 8 * (1, 2, 4, 8):
            server.hearing._observed.append(Observed("v0", ObservedStep(n, 64, 0.1)))
        server.sample = busy(server.sample.time + LEARN_SECONDS, rate=0.3, n=1)
        server.tick()
    assert server.running == "v1"


def test_the_policy_knows_the_pace_of_the_machine_for_variants_that_never_ran() -> None:
    server, profile = Server(), ladder(2)
    server.control.steer(profile, QUICK, "predictive")
    told = []
    for i, slowdown in enumerate((1.0, 2.0)):  # what others take of the processor is no pace
        hear(server, "v0", 1.5 * slowdown, profile)
        server.sample = replace(busy(i * FOLLOW_SECONDS, rate=0.3, n=1), slowdown=slowdown)
        told.append(asyncio.run(server.control._sample()).slowdown)
    assert told == pytest.approx([1.5, 3.0])
    assert server.document()["control"]["pace"] == 1.5
    assert server.control.steering is not None
    for variant in server.control.steering.profile.variants:  # the machine is slower, and no variant is another one
        assert SpeedModel(variant, 512).writing(8, 64) == SpeedModel(profile.variant(variant.name), 512).writing(8, 64)


def test_a_machine_that_became_slower_is_a_reason_to_go_down() -> None:
    server = Server()
    server.control.steer(ladder(2), QUICK, "predictive")
    streams = [Stream("interactive", 100, 99 * AIM * 0.06)] * 4  # all their time is used up
    load = {"interactive": ClassSample(0.3, 60, 120, 60)}
    server.sample = Sample(0.0, load, n_running=4, streams=streams)
    server.tick()
    assert server.running == "v0"
    hear(server, "v0", 2.2, ladder(2), n=4)
    server.sample = replace(server.sample, time=FOLLOW_SECONDS)
    server.tick()
    assert server.running == "v1"


def test_what_one_variant_differs_by_from_the_pace_is_learned_of_it() -> None:
    server, profile = Server(), ladder(2)
    server.control.steer(profile, QUICK, "predictive")
    for i in range(20):
        hear(server, "v0", 1.0, profile)
        hear(server, "v0", 1.0, profile)
        hear(server, "v1", 1.4, profile)
        server.sample = busy(i * LEARN_SECONDS, rate=0.3, n=1)
        server.tick()
    assert server.control.steering is not None
    assert server.control.pace.times == pytest.approx(1.0, abs=0.02)
    learned_of = {v.name: SpeedModel(v, 512).writing(8, 64) for v in server.control.steering.profile.variants}
    known = {v.name: SpeedModel(v, 512).writing(8, 64) for v in profile.variants}
    assert learned_of["v0"] / known["v0"] == pytest.approx(1.0, abs=0.02)
    assert learned_of["v1"] / known["v1"] == pytest.approx(1.4, abs=0.05)


def test_few_steps_and_unknown_variants_show_no_pace() -> None:
    profile = ladder(2)
    seconds = SpeedModel(profile.variant("v1"), 512).writing(4, 64)
    steps = [Observed("v1", ObservedStep(4, 64, 1.3 * seconds))] * LEAST_STEPS
    assert pace_of(profile, steps[1:]) is None
    assert pace_of(profile, [*steps[1:], Observed("v1", ObservedPrompt(20, 9.0))]) is None
    assert pace_of(profile, [replace(one, variant="gone") for one in steps]) is None
    assert pace_of(profile, steps) == pytest.approx(1.3)


def test_of_a_policys_many_changes_few_are_lines_and_none_is_lost_from_the_count() -> None:
    lines: list[str] = []
    say = ChangeLines(lines.append)
    for i in range(9):
        say(LoggedChange(i * LINE_SECONDS / 4, "v0", "v1", "a reason"))
    assert [line.partition(" (after ")[2] for line in lines] == ["", *["3 more by policy)"] * 2]


def test_what_hands_and_memory_change_and_what_fails_is_always_a_line() -> None:
    lines: list[str] = []
    say = ChangeLines(lines.append)
    say(LoggedChange(0.0, "v0", "v1", "a reason"))
    say(LoggedChange(0.1, "v1", "v0", "a reason"))
    say(LoggedChange(0.2, "v0", "v1", "64 MiB are left", "memory"))
    say(LoggedChange(0.3, "v1", "v0", "somebody asked for it", "hand"))
    say(LoggedChange(0.4, "v0", "v1", "a reason", failure="no room"))
    assert lines[1:] == [
        "v0 -> v1 (by memory): 64 MiB are left (after 1 more by policy)",
        "v1 -> v0 (by hand): somebody asked for it",
        "v0 -> v1 (by policy): a reason; it failed: no room",
    ]
