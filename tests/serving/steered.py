"""A control over the fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

from lamella.qos.live.control import VariantControl
from lamella.qos.live.hearing import RequestHearing
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.sample import Sample
from tests.fakes.engine import FakeEngine
from tests.qos.profiles import profile, variant

OBJECTIVES = Objectives({"chat": ClassObjectives(tpot_seconds=1.0, priority=5), "batch": ClassObjectives()})


def steered(engine: FakeEngine, policy: str) -> VariantControl:
    """A control of the fake engine's two variants, which is shown an idle machine."""

    async def take() -> Sample:
        return Sample(asyncio.get_running_loop().time())

    async def figures() -> dict[str, Any]:
        return {"batch": 0}

    control = VariantControl(
        RequestHearing(), running=lambda: "large", switch=engine.switch, take=take, figures=figures
    )
    control.steer(profile(variant("large"), variant("small", 0.5, kl=0.1)), OBJECTIVES, policy)
    return control
