"""What the page shows of a control: who decides, what was decided, and what was seen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lamella.core.errors import RequestRefused
from lamella.dashboard.state import Promise
from lamella.dashboard.steering import changes_shown, control_shown, machine_shown, recorder_of
from tests.dashboard.conftest import PanelEngine, steered
from tests.qos.profiles import MEBI


def test_a_control_says_who_decides() -> None:
    engine = PanelEngine()
    assert control_shown(steered(engine, is_steered=False)) is None
    control = steered(engine)
    shown = control_shown(control)
    assert shown is not None
    assert (shown.policy, shown.is_on, shown.held_until, shown.memory_bytes) == ("static:large", True, None, 600 * MEBI)
    assert shown.promises == (Promise("chat", None, 1.0, 0.5), Promise("batch"))
    asyncio.run(control.switch("small"))
    held = control_shown(control)
    assert held is not None
    assert held.is_held
    assert held.held_until is not None
    control.change(is_on=False)
    stopped = control_shown(control)
    assert stopped is not None
    assert stopped.is_on is False


def test_decisions_are_shown_with_those_that_failed() -> None:
    engine = PanelEngine()
    control = steered(engine)
    asyncio.run(control.switch("small"))
    with pytest.raises(RequestRefused):
        asyncio.run(control.switch("gone"))
    done, failed = changes_shown(control)
    assert (done.before, done.after, done.by, done.failure) == ("large", "small", "hand", "")
    assert (failed.before, failed.after) == ("small", "gone")
    assert "no variant 'gone'" in failed.failure


def test_a_recorder_does_not_tell_a_decision_twice() -> None:
    engine = PanelEngine()
    control = steered(engine)
    recorder = recorder_of(engine, control)
    recorder.look()
    asyncio.run(control.switch("small"))
    recorder.look()
    assert [(change.before, change.after) for change in recorder.changes] == [(None, "large"), ("large", "small")]


def test_the_profile_that_steers_is_what_was_measured() -> None:
    engine = PanelEngine()
    given = {"large": recorder_of(engine, steered(engine)).measured()["large"]}
    assert set(recorder_of(engine, steered(engine), given).measured()) == {"large", "small"}
    assert recorder_of(engine, steered(engine, is_steered=False), given).measured() == given
    assert given["large"].ms_per_token > 0


@pytest.mark.parametrize(
    ("figures", "watts", "why"),
    [
        ({}, None, "nobody looks at the machine"),
        ({"watts": 9.0, "absent": {"nvidia": "no NVML"}}, 9.0, ""),
        ({"watts": None, "absent": {"nvidia": "no NVML"}}, None, ""),
        (
            {"watts": None, "absent": {"nvidia": "no NVML", "energy": "no RAPL", "battery": "no"}},
            None,
            "no RAPL; no NVML",
        ),
    ],
)
def test_why_nothing_is_known_of_power(figures: dict[str, Any], watts: float | None, why: str) -> None:
    machine = machine_shown(figures)
    assert (machine.watts, machine.why_no_watts) == (watts, why)
