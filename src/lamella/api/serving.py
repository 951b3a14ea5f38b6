"""``lamella serve``: a supervised engine process behind the web front."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # FastAPI and what it brings take a third of a second to import
    from lamella.batching.settings import EngineSettings
    from lamella.serving.settings import FrontSettings


async def serve(
    engine: EngineSettings,
    front: FrontSettings,
    *,
    max_queue: int = 64,
    on_listening: Callable[[str], None] = lambda _: None,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer requests until a signal comes.

    Args:
        max_queue: requests that may wait beside those that run.
        on_listening: told the URL once the model is loaded and connections are accepted.
        on_line: gets what the engine process writes on its error stream.

    Raises:
        EngineUnavailable: the engine cannot load the model; says why.
        InvalidRequest: the address, the certificate or a setting cannot be used.
    """
    from lamella.serving import server
    from lamella.serving.supervision import SupervisorOptions
    from lamella.serving.supervisor import SupervisedEngine

    async with SupervisedEngine(engine, SupervisorOptions(max_queue=max_queue), on_line=on_line) as client:
        await server.serve(client, front, on_listening=on_listening)
