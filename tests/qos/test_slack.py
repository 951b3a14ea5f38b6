"""What a rung would break, set against counting every way in which a stream could end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.sample import ClassSample, Sample, Stream
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.slack import AIM, HORIZON_SECONDS, losses, step_seconds
from tests.qos.profiles import ladder

PROMISED = 0.03
SETTING = Setting.of(ladder(3), Objectives({"interactive": ClassObjectives(tpot_seconds=PROMISED)}))
CHANCE = random.Random(1)
RATE = 0.5
LENGTHS = sorted(CHANCE.randrange(2, 300) for _ in range(2000))


def sample_of(*streams: Stream, n: int, rate: float = RATE) -> Sample:
    seen = ClassSample(rate, 60, 120, 100, lengths=LENGTHS)
    return Sample(1.0, {"interactive": seen}, n_running=n, streams=streams)


def counted(stream: Stream, step: float, fastest: float, alone: float, seconds: float) -> float:
    """The same by going through the ends one by one."""
    n_fast, broken, n_longer = seconds / step, 0, 0
    for length in LENGTHS:
        if length > stream.n_written:
            j, allowed = length - stream.n_written, AIM * PROMISED * (length - 1)
            n_longer += 1
            took = stream.seconds + min(j, n_fast) * step + max(0.0, j - n_fast) * fastest
            broken += (took > allowed) - (stream.seconds + j * alone > allowed)
    return max(0, broken) / n_longer


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0.2, 1.6), st.integers(1, 8), st.floats(1, 3))
def test_losses_are_what_counting_says(n_written: int, share: float, n: int, times: float) -> None:
    stream = Stream("interactive", n_written, share * PROMISED * n_written)
    sample = sample_of(stream, n=n)
    steps = [step_seconds(rung, SETTING, sample, HORIZON_SECONDS * RATE) for rung in SETTING.rungs]
    alone = step_seconds(SETTING.rungs[-1], SETTING, sample_of(n=1))
    seconds = times * (HORIZON_SECONDS + SETTING.rungs[-1].profile.prepare_seconds)
    found = losses(SETTING.rungs, SETTING, sample, times)
    for rung, step in zip(SETTING.rungs, steps, strict=True):
        expected = counted(stream, step, steps[-1], alone, seconds)
        assert found[rung.name]["interactive"] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("share", "is_at_risk"), [(0.98, True), (0.96, False)])
def test_a_stream_that_would_use_all_of_its_promise_is_at_risk(share: float, is_at_risk: bool) -> None:
    """Steps waver, and it would have nothing left for that."""
    rung = SETTING.rungs[0]
    step = step_seconds(rung, SETTING, sample_of(n=4), HORIZON_SECONDS * RATE)
    setting = Setting.of(ladder(3), Objectives({"interactive": ClassObjectives(tpot_seconds=step / share)}))
    sample = sample_of(Stream("interactive", 101, 100 * step), n=4)
    assert (losses(setting.rungs, setting, sample)["v0"]["interactive"] > 0.02) == is_at_risk


def test_streams_share_one_loss_and_others_none() -> None:
    late, early = (Stream("interactive", 101, 100 * ms / 1000) for ms in (33, 5))
    found = losses(SETTING.rungs, SETTING, sample_of(late, early, n=2), 1.0)["v0"]["interactive"]
    alone = losses(SETTING.rungs, SETTING, sample_of(late, n=2), 1.0)["v0"]["interactive"]
    assert 0 < found < alone
    assert found == pytest.approx(alone / 2, abs=0.01)
    assert losses(SETTING.rungs, SETTING, sample_of(Stream("batch", 9, 9.0), n=1))["v0"] == {}


def test_streams_that_are_expected_count_as_if_they_were_there() -> None:
    sample = sample_of(Stream("interactive", 1, 0.02), n=2, rate=2.0)
    as_if = sample_of(Stream("interactive", 1, 0.02), n=2 + round(2.0 * HORIZON_SECONDS), rate=2.0)
    rung = SETTING.rungs[0]
    assert step_seconds(rung, SETTING, sample, 2.0 * HORIZON_SECONDS) == step_seconds(rung, SETTING, as_if)
    few, many = (
        losses(SETTING.rungs, SETTING, sample_of(Stream("interactive", 1, 0.02), n=1, rate=rate))["v0"]["interactive"]
        for rate in (0.1, 3.0)
    )
    assert few < 0.01 < 0.5 < many  # alone it is fast enough; beside six that come it is not


def test_a_token_takes_the_longer_the_more_write_and_the_more_prompts_come() -> None:
    rung = SETTING.rungs[0]
    by_streams = [step_seconds(rung, SETTING, sample_of(n=n)) for n in (1, 4, 8, 20)]
    assert by_streams[0] < by_streams[1] < by_streams[2] == by_streams[3]  # eight have a slot
    by_rate = [step_seconds(rung, SETTING, sample_of(n=4, rate=rate)) for rate in (0.0, 1.0, 100.0)]
    assert by_rate == sorted(set(by_rate))
    assert by_rate[0] == pytest.approx(rung.speed.writing(4, 1), rel=0.05)
