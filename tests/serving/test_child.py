"""One engine process, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import sys

import pytest

from lamella.batching.settings import EngineSettings
from lamella.serving import child
from lamella.serving.child import EngineChild

CLOSES_AND_STAYS = "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(60)"


def test_a_process_that_closes_its_connection_and_stays_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_EXIT_SECONDS", 0.2)

    async def ended() -> str:
        command = (sys.executable, "-c", CLOSES_AND_STAYS)
        process = await EngineChild.start(command, EngineSettings(store=""), lambda _: None, lambda _: None)
        return await asyncio.wait_for(process.ended(), 30)

    assert asyncio.run(ended()) == "it was killed: it closed its connection and did not end"
