"""A front that a test can kill: ``python -m tests.fakes.front_process PROMPT``.

It prints the number of its engine process when that has written a token for the prompt, and waits.
"""

from __future__ import annotations

import asyncio
import sys

from lamella.batching.messages import Generate, TokenEvent
from lamella.batching.settings import EngineSettings
from lamella.serving.supervision import SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine

FAKE_COMMAND = (sys.executable, "-m", "tests.fakes.engine_process")


async def serve(prompt: str) -> None:
    """Generate for ever."""
    options = SupervisorOptions(command=FAKE_COMMAND)
    async with SupervisedEngine(EngineSettings(store="fake"), options) as engine:
        async for event in engine.generate(Generate(id=0, prompt=prompt, max_tokens=2)):
            if isinstance(event, TokenEvent):
                break
        assert engine.facts is not None
        sys.stdout.write(f"{engine.facts.pid}\n")
        sys.stdout.flush()
        await asyncio.sleep(1000)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
