"""Forecasts for a load: they grow with it, wait for higher priorities, and are as cautious as promises were broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.forecast import Z95, forecast
from lamella.qos.policies.predictive import caution_of
from lamella.qos.policies.sample import Sample, slowdown_by_others
from tests.qos.loads import load, setting_for


def test_forecasts_are_the_more_cautious_the_more_promises_were_broken() -> None:
    setting = setting_for(Objectives({"interactive": ClassObjectives(None, 0.045)}))
    cautions = [caution_of(Sample(0.0, {"interactive": replace(load(1.0), kept_share=k)})) for k in (1, 0.98, 0.9)]
    assert cautions == [0.0, pytest.approx(Z95 / 2), Z95]
    sample = Sample(10.0, {"interactive": load(1.0)})
    bold, careful = (forecast(setting.rungs[0], setting, sample, 1.0, c).tpot_seconds for c in (0.0, Z95))
    assert bold < careful


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
